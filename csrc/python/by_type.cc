#include "python/by_type.h"

namespace py = pybind11;

namespace pyckpt {
namespace {

// self is (handlers, other).
PyObject* Call(PyObject* self, PyObject* object) {
  auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  PyObject* handler = PyDict_GetItemWithError(PyTuple_GET_ITEM(self, 0), type);
  if (handler == nullptr) {
    if (PyErr_Occurred() != nullptr) return nullptr;
    handler = PyTuple_GET_ITEM(self, 1);
  }
  if (handler == Py_None) Py_RETURN_NONE;
  return PyObject_CallOneArg(handler, object);
}

PyMethodDef call_method = {"by_type", &Call, METH_O, nullptr};

}  // namespace

py::object ByType(const py::dict& handlers, const py::object& other) {
  const py::tuple self = py::make_tuple(handlers, other);
  return py::reinterpret_steal<py::object>(PyCFunction_New(&call_method, self.ptr()));
}

}  // namespace pyckpt
