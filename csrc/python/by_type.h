// A Python function of one object, chosen by the object's type.
//
// A pickler asks for the persistent id of every object, about twenty times per tensor. The answer
// is nearly always None. This function gives that answer without running Python code.
#ifndef PYCKPT_PYTHON_BY_TYPE_H_
#define PYCKPT_PYTHON_BY_TYPE_H_

#include <pybind11/pybind11.h>

namespace pyckpt {

// A function of one object. It calls handlers[type(object)], or other if the type is not a key, and
// returns the result. Base classes are not looked up. If the handler or other is None, it returns
// None.
pybind11::object ByType(const pybind11::dict& handlers, const pybind11::object& other);

}  // namespace pyckpt

#endif  // PYCKPT_PYTHON_BY_TYPE_H_
