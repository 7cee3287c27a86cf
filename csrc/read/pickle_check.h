// What a pickle claims about itself, compared with its size. Python's unpickler in C
// believes a memo index, and makes room for all that are below it.
#ifndef PYCKPT_READ_PICKLE_CHECK_H_
#define PYCKPT_READ_PICKLE_CHECK_H_

#include "base/bytes.h"

namespace pyckpt {

// Throws Error::Corrupt, with the offset in the pickle, for an opcode that there is
// not, or that asks for the process's registry of extensions; for an argument that
// leads beyond the end; for a memo index larger than the pickle; for no end.
void CheckPickle(Span pickle);

}  // namespace pyckpt

#endif  // PYCKPT_READ_PICKLE_CHECK_H_
