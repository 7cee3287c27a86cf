// A Python function of one object, chosen by the object's type.
//
// A pickler asks for the persistent id of every object, some twenty times a tensor, and the answer
// is nearly always None. That answer is given here without running Python.
#ifndef PYCKPT_PYTHON_BY_TYPE_H_
#define PYCKPT_PYTHON_BY_TYPE_H_

#include <pybind11/pybind11.h>

namespace pyckpt {

// A function that calls handlers[type(object)], or other if the type is not a key. Base classes
// are not looked up. A handler of None stands for a function that returns None.
pybind11::object ByType(const pybind11::dict& handlers, const pybind11::object& other);

}  // namespace pyckpt

#endif  // PYCKPT_PYTHON_BY_TYPE_H_
