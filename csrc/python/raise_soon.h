// Exceptions of Python that come where none may be thrown: in calls that ignore failures, and in
// destructors.
#ifndef PYCKPT_PYTHON_RAISE_SOON_H_
#define PYCKPT_PYTHON_RAISE_SOON_H_

#include <pybind11/pybind11.h>

namespace pyckpt {

// Raises the error in the main thread, once Python runs there again: as if Ctrl-C had come a little
// later. An error of another thread is printed, and so is one for which there is no room. Call it
// with the GIL, after the last call into Python.
//
// doing is for what is printed.
void RaiseSoon(pybind11::error_already_set* error, const char* doing) noexcept;

// Throws what is to be raised soon, if this is the main thread. Whoever is about to throw something
// else calls it first, with the GIL: one exception comes out, and not another one behind it.
void RaiseNow();

}  // namespace pyckpt

#endif  // PYCKPT_PYTHON_RAISE_SOON_H_
