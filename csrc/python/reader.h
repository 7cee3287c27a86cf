// The part of the extension module that reads files.
#ifndef PYCKPT_PYTHON_READER_H_
#define PYCKPT_PYTHON_READER_H_

#include <pybind11/pybind11.h>

namespace pyckpt {

void BindReader(pybind11::module_* m);

}  // namespace pyckpt

#endif  // PYCKPT_PYTHON_READER_H_
