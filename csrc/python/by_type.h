// A Python function of one object that does what belongs to the object's type.
//
// A pickler asks for the persistent id of whatever it meets, some twenty times a
// tensor, and nearly always in vain: that answer needs no Python.
#ifndef PYCKPT_PYTHON_BY_TYPE_H_
#define PYCKPT_PYTHON_BY_TYPE_H_

#include <pybind11/pybind11.h>

namespace pyckpt {

// Calls handlers[type(object)], or other for types that are no keys. Bases do not
// count, and None stands for a function that returns None.
pybind11::object ByType(const pybind11::dict& handlers, const pybind11::object& other);

}  // namespace pyckpt

#endif  // PYCKPT_PYTHON_BY_TYPE_H_
