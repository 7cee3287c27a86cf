// Compares the numbers in a pickle with its size. Python's C unpickler does not: it trusts a memo
// index, and allocates room for all indexes below it.
#ifndef PYCKPT_READ_PICKLE_CHECK_H_
#define PYCKPT_READ_PICKLE_CHECK_H_

#include "base/bytes.h"

namespace pyckpt {

// Throws Error::Corrupt, with the offset in the pickle, if
// - an opcode does not exist,
// - an argument reaches beyond the end,
// - a memo index is not a number, or is larger than the size of the pickle in bytes,
// - the pickle has no STOP opcode.
void CheckPickle(Span pickle);

}  // namespace pyckpt

#endif  // PYCKPT_READ_PICKLE_CHECK_H_
