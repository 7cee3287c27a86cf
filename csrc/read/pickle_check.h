// Checks what a pickle claims against its size. Python's C unpickler trusts a memo index, and
// allocates room for all indexes below it.
#ifndef PYCKPT_READ_PICKLE_CHECK_H_
#define PYCKPT_READ_PICKLE_CHECK_H_

#include "base/bytes.h"

namespace pyckpt {

// Throws Error::Corrupt, with the offset in the pickle, for an opcode that does not exist or that
// uses the process's registry of extensions, for an argument that leads beyond the end, for a memo
// index larger than the pickle, and for a pickle without an end.
void CheckPickle(Span pickle);

}  // namespace pyckpt

#endif  // PYCKPT_READ_PICKLE_CHECK_H_
