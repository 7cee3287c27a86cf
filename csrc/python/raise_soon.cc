#include "python/raise_soon.h"

namespace py = pybind11;

namespace pyckpt {
namespace {

// Python calls it in the main thread.
int Raise(void* exception) {
  const auto value = py::reinterpret_steal<py::object>(static_cast<PyObject*>(exception));
  PyErr_SetObject(PyExceptionInstance_Class(value.ptr()), value.ptr());
  return -1;
}

bool IsInMainThread() {
  const py::module_ threading = py::module_::import("threading");
  return threading.attr("current_thread")().is(threading.attr("main_thread")());
}

}  // namespace

void RaiseSoon(py::error_already_set* error, const char* doing) noexcept {
  try {
    if (IsInMainThread()) {
      py::object value = error->value();
      if (error->trace()) PyException_SetTraceback(value.ptr(), error->trace().ptr());
      if (Py_AddPendingCall(&Raise, value.ptr()) == 0) {
        static_cast<void>(value.release());
        return;
      }
    }
    error->discard_as_unraisable(doing);
  } catch (...) {  // NOLINT(bugprone-empty-catch): nothing else can be done
  }
}

void RaiseNow() {
  if (Py_MakePendingCalls() != 0) throw py::error_already_set();
}

}  // namespace pyckpt
