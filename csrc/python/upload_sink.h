// A sink that is an object of Python: the upload of an object to a store.
#ifndef PYCKPT_PYTHON_UPLOAD_SINK_H_
#define PYCKPT_PYTHON_UPLOAD_SINK_H_

#include <pybind11/pybind11.h>

#include <memory>

#include "write/sink.h"

namespace pyckpt {

// upload has the methods of pyckpt.storage.store.Upload, which are those of a sink. It gets the
// bytes in order and on the thread that saves, as memoryviews that are valid during the call. A
// sink that is destroyed abandons it, but for one that a forked process has inherited.
//
// What keep, restore and abandon of the upload raise is an interrupt. They are called once more
// then, and it is raised when that is done: see RaiseSoon.
std::shared_ptr<Sink> NewUploadSink(pybind11::object upload);

}  // namespace pyckpt

#endif  // PYCKPT_PYTHON_UPLOAD_SINK_H_
