// The extension module: converts arguments, releases the GIL, turns errors into Python exceptions.
// It makes no decisions and loops over no data.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/cpu.h"
#include "base/crc32.h"
#include "base/error.h"
#include "base/guarded_copy.h"
#include "base/parallel_copy.h"
#include "base/punch_hole.h"
#include "codec/formats.h"
#include "container/tar_format.h"
#include "python/by_type.h"
#include "python/owned.h"
#include "python/raise_soon.h"
#include "python/reader.h"
#include "python/upload_sink.h"
#include "write/archive_writer.h"
#include "write/exchange_names.h"
#include "write/file_sink.h"
#include "write/live_memory.h"
#include "write/ordered_sink.h"
#include "write/sink.h"

namespace py = pybind11;

namespace pyckpt {
namespace {

// A Python object whose read(offset, nbytes, address) fills memory.
class PythonSource final : public Source {
 public:
  explicit PythonSource(py::object reader) : reader_(std::move(reader)) {}

  void Read(std::uint64_t offset, std::size_t nbytes, std::uint8_t* out) override {
    const py::gil_scoped_acquire gil;
    reader_.attr("read")(offset, nbytes, reinterpret_cast<std::uintptr_t>(out));
  }

 private:
  py::object reader_;
};

// NOLINTNEXTLINE(performance-no-int-to-ptr): torch hands out addresses as integers.
std::uint8_t* ToPointer(std::uintptr_t address) { return reinterpret_cast<std::uint8_t*>(address); }

// A Source of the core is returned as it is. Any other object must have read(), and is wrapped.
std::shared_ptr<Source> ToSource(const py::object& reader) {
  if (py::isinstance<Source>(reader)) return reader.cast<std::shared_ptr<Source>>();
  return std::make_shared<PythonSource>(reader);
}

// (name, address, nbytes, element_nbytes, reader or None)
using RecordArguments =
    std::tuple<std::string, std::uintptr_t, std::uint64_t, std::uint32_t, py::object>;

TensorRecord ToRecord(const RecordArguments& arguments) {
  const auto& [name, address, nbytes, element_nbytes, reader] = arguments;
  TensorRecord record;
  record.name = name;
  record.memory = {ToPointer(address), nbytes};
  record.nbytes = nbytes;
  record.element_nbytes = element_nbytes;
  if (!reader.is_none()) record.source = ToSource(reader);
  return record;
}

std::vector<TensorRecord> ToRecords(const std::vector<RecordArguments>& arguments) {
  std::vector<TensorRecord> records;
  records.reserve(arguments.size());
  for (const RecordArguments& a : arguments) records.push_back(ToRecord(a));
  return records;
}

// (nbytes, element_nbytes, reader)
using SegmentArguments = std::tuple<std::uint64_t, std::uint32_t, py::object>;

ArchiveWriter::Place AddSegments(ArchiveWriter* writer, const std::string& name, std::uint32_t mode,
                                 const std::vector<SegmentArguments>& arguments) {
  std::vector<Segment> segments;
  segments.reserve(arguments.size());
  for (const auto& [nbytes, element_nbytes, reader] : arguments) {
    segments.push_back({ToSource(reader), nbytes, element_nbytes});
  }
  return writer->AddSegments(name, mode, segments);
}

ArchiveWriter::Place AddBytes(ArchiveWriter* writer, const std::string& name, std::uint32_t mode,
                              const py::bytes& bytes) {
  return writer->AddBytes(name, mode, bytes);
}

ArchiveWriter::Place AddTorchFile(ArchiveWriter* writer, const std::string& name,
                                  std::uint32_t mode,
                                  const std::vector<RecordArguments>& arguments) {
  return writer->AddTorchFile(name, mode, ToRecords(arguments));
}

void AddDeflatedTorchFile(ArchiveWriter* writer, const std::vector<RecordArguments>& arguments) {
  writer->AddDeflatedTorchFile(ToRecords(arguments));
}

// A sink that calls write with a memoryview of all bytes, piece by piece and in order, on the
// thread that writes the archive. The memory is valid during the call.
py::object NewOrderedSink(py::object write) {
  return Owned<Sink>(std::make_shared<OrderedSink>([write = std::move(write)](Span piece) {
    const py::gil_scoped_acquire gil;
    const py::memoryview view =
        py::memoryview::from_memory(piece.data, static_cast<py::ssize_t>(piece.nbytes));
    write(view);
    view.attr("release")();  // fails if somebody still uses it
  }));
}

std::uint64_t Write(ArchiveWriter* writer, const py::object& progress) {
  const auto poll = [writer, &progress] {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress.is_none()) return;
    const ArchiveWriter::Progress now = writer->progress();
    progress(now.written_nbytes, now.total_nbytes);
  };
  try {
    const py::gil_scoped_release release;
    return writer->Write(poll);
  } catch (...) {
    RaiseNow();  // an interrupt that came while the sink was abandoned
    throw;
  }
}

// Python's exception class for ErrorKind::kCorrupt. Lives as long as Python.
py::handle CorruptError() {
  static const py::handle type =
      PyErr_NewException("pyckpt._core.CorruptError", PyExc_RuntimeError, nullptr);
  return type;
}

const Codec* CodecOf(const Format* format, bool tar) {
  if (format == nullptr) return nullptr;
  return tar ? format->codec : format->file_codec;
}

py::tuple WriterProgress(const ArchiveWriter& writer) {
  const ArchiveWriter::Progress progress = writer.progress();
  return py::make_tuple(progress.written_nbytes, progress.total_nbytes);
}

// (to, from, nbytes)
using CopyArguments = std::tuple<std::uintptr_t, std::uintptr_t, std::uint64_t>;

void CopyInParallel(const std::vector<CopyArguments>& arguments, int threads) {
  std::vector<Copy> copies;
  copies.reserve(arguments.size());
  for (const auto& [to, from, nbytes] : arguments) {
    copies.push_back({ToPointer(to), {ToPointer(from), nbytes}});
  }
  ParallelCopy(copies, threads);
}

py::object AddLive(const std::shared_ptr<LiveMemory>& memory, std::uintptr_t address,
                   std::uint64_t nbytes) {
  return Owned<Source>(
      std::make_shared<LiveSource>(memory, memory->Add({ToPointer(address), nbytes})));
}

void NewArchiveWriter(py::detail::value_and_holder& place, std::shared_ptr<Sink> sink,
                      const Format* format, bool tar, bool deflated, int level, int threads,
                      std::int64_t mtime, std::uint32_t uid, std::uint32_t gid) {
  ArchiveOptions options;
  options.tar = tar;
  options.codec = CodecOf(format, tar);
  options.deflated = deflated;
  options.level = level;
  options.threads = threads;
  options.mtime = mtime;
  options.uid = uid;
  options.gid = gid;
  Construct(&place, std::make_shared<ArchiveWriter>(std::move(sink), options));
}

void ReadSource(Source* source, std::uint64_t offset, std::size_t nbytes, std::uintptr_t address) {
  source->Read(offset, nbytes, ToPointer(address));
}

void StageLive(LiveMemory* memory, std::uintptr_t buffer, int threads) {
  memory->Stage(ToPointer(buffer), threads);
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): the signature is pybind11's.
void ToPython(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const Error& error) {
    switch (error.kind()) {
      case ErrorKind::kSystem: {
        const py::tuple arguments =
            py::make_tuple(error.error_number(), error.what(), error.path());
        PyErr_SetObject(PyExc_OSError, arguments.ptr());
        break;
      }
      case ErrorKind::kArgument:
        PyErr_SetString(PyExc_ValueError, error.what());
        break;
      case ErrorKind::kCodec:
        PyErr_SetString(PyExc_RuntimeError, error.what());
        break;
      case ErrorKind::kCorrupt: {
        // The message may quote a name from the file, which may not be UTF-8.
        const std::string message = error.what() + (", at byte " + std::to_string(error.offset()));
        const auto text = py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(
            message.data(), static_cast<py::ssize_t>(message.size()), "replace"));
        PyErr_SetObject(CorruptError().ptr(), text.ptr());
        break;
      }
    }
  }
}

// The instruction sets that kernels use beyond what every CPU of this kind has.
std::vector<std::string> Kernels() {
  std::vector<std::string> names;
  if (UseAvx2()) names.emplace_back("avx2");
  if (UseBmi2()) names.emplace_back("bmi2");
  if (UseVpclmul()) names.emplace_back("vpclmulqdq");
  return names;
}

std::uint32_t Crc32At(std::uintptr_t address, std::size_t nbytes) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): Python hands out addresses as integers.
  return Crc32({reinterpret_cast<const std::uint8_t*>(address), nbytes});
}

py::bytes TarFileHeader(const std::string& name, std::uint64_t nbytes, std::uint32_t uid,
                        std::uint32_t gid) {
  TarEntry entry;
  entry.name = name;
  entry.nbytes = nbytes;
  entry.uid = uid;
  entry.gid = gid;
  return TarHeader(entry);
}

}  // namespace
}  // namespace pyckpt

PYBIND11_MODULE(_core, m) {
  using pyckpt::ArchiveWriter;
  using pyckpt::Format;
  using pyckpt::Levels;
  using pyckpt::LiveMemory;
  py::register_exception_translator(&pyckpt::ToPython);
  m.attr("CorruptError") = pyckpt::CorruptError();

  py::class_<Levels>(m, "Levels")
      .def_readonly("lowest", &Levels::lowest)
      .def_readonly("highest", &Levels::highest)
      .def_readonly("standard", &Levels::standard);
  py::class_<Format>(m, "Format")
      .def_readonly("name", &Format::name)
      .def_readonly("compression", &Format::compression)
      .def_readonly("suffixes", &Format::suffixes)
      .def_readonly("file_endings", &Format::file_endings)
      // A copy: one that lives in the format would have to keep it.
      .def_property_readonly("levels", [](const Format& f) { return f.levels; })
      .def_property_readonly("chunk_nbytes", [](const Format& f) {
        return pyckpt::CodecOf(&f, f.codec != nullptr)->chunk_nbytes();
      });
  m.def("formats", &pyckpt::TarFormats, py::return_value_policy::reference);
  m.def("file_formats", &pyckpt::FileFormats, py::return_value_policy::reference);

  py::class_<pyckpt::Sink, std::shared_ptr<pyckpt::Sink>>(m, "Sink").doc() =
      "Where an archive is written to.";
  m.def(
      "file_sink",
      [](std::string path, bool durable, std::string mark) {
        return pyckpt::Owned<pyckpt::Sink>(
            std::make_shared<pyckpt::FileSink>(std::move(path), durable, std::move(mark)));
      },
      py::arg("path"), py::arg("durable"), py::arg("mark"));
  m.def("ordered_sink", &pyckpt::NewOrderedSink, py::arg("write"));
  m.def(
      "upload_sink",
      [](py::object upload) { return pyckpt::Owned(pyckpt::NewUploadSink(std::move(upload))); },
      py::arg("upload"));

  py::class_<ArchiveWriter, std::shared_ptr<ArchiveWriter>>(m, "ArchiveWriter")
      .def("__init__", &pyckpt::NewArchiveWriter, py::detail::is_new_style_constructor(),
           py::arg("sink").none(false), py::arg("format").none(true), py::kw_only(), py::arg("tar"),
           py::arg("deflated"), py::arg("level"), py::arg("threads"), py::arg("mtime"),
           py::arg("uid"), py::arg("gid"))
      .def("add_directory", &ArchiveWriter::AddDirectory, py::arg("name"), py::arg("mode"))
      .def("add_bytes", &pyckpt::AddBytes, py::arg("name"), py::arg("mode"), py::arg("data"))
      .def("add_file", &ArchiveWriter::AddFile, py::arg("name"), py::arg("mode"),
           py::arg("source_path"))
      .def("add_segments", &pyckpt::AddSegments, py::arg("name"), py::arg("mode"),
           py::arg("segments"))
      .def("add_torch_file", &pyckpt::AddTorchFile, py::arg("name"), py::arg("mode"),
           py::arg("records"))
      .def("add_deflated_torch_file", &pyckpt::AddDeflatedTorchFile, py::arg("records"))
      .def_property_readonly("progress", &pyckpt::WriterProgress)
      .def("write", &pyckpt::Write, py::arg("progress"))
      .def("commit", &ArchiveWriter::Commit, py::arg("keep_previous"),
           py::call_guard<py::gil_scoped_release>())
      .def("keep", &ArchiveWriter::Keep)
      .def("restore", &ArchiveWriter::Restore)
      .def("abandon", &ArchiveWriter::Abandon);

  m.def("exchange_names", &pyckpt::ExchangeNames, py::arg("a"), py::arg("b"),
        py::call_guard<py::gil_scoped_release>());
  m.def("punch_hole", &pyckpt::PunchHole, py::arg("fd"), py::arg("offset"), py::arg("nbytes"),
        py::call_guard<py::gil_scoped_release>());
  m.def("kernels", &pyckpt::Kernels);
  m.def("tar_header", &pyckpt::TarFileHeader, py::arg("name"), py::arg("nbytes"), py::arg("uid"),
        py::arg("gid"));
  m.def("crc32", &pyckpt::Crc32At, py::arg("address"), py::arg("nbytes"),
        py::call_guard<py::gil_scoped_release>());
  m.def("crc32_combine", &pyckpt::Crc32Combine, py::arg("crc_a"), py::arg("crc_b"),
        py::arg("nbytes_b"));
  m.def("can_guard_copies", &pyckpt::CanGuardCopies);
  m.def("by_type", &pyckpt::ByType, py::arg("handlers"), py::arg("other"));
  m.def("parallel_copy", &pyckpt::CopyInParallel, py::arg("copies"), py::arg("threads"),
        py::call_guard<py::gil_scoped_release>());

  py::class_<pyckpt::Source, std::shared_ptr<pyckpt::Source>>(m, "Source")
      .def("read", &pyckpt::ReadSource, py::arg("offset"), py::arg("nbytes"), py::arg("address"),
           py::call_guard<py::gil_scoped_release>());
  py::class_<LiveMemory, std::shared_ptr<LiveMemory>>(m, "LiveMemory")
      .def(
          "__init__",
          [](py::detail::value_and_holder& place) {
            pyckpt::Construct(&place, std::make_shared<LiveMemory>());
          },
          py::detail::is_new_style_constructor())
      .def("add", &pyckpt::AddLive, py::arg("address"), py::arg("nbytes"))
      .def_property_readonly("staging_nbytes", &LiveMemory::staging_nbytes)
      .def("stage", &pyckpt::StageLive, py::arg("buffer"), py::arg("threads"),
           py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("released", &LiveMemory::released);

  pyckpt::BindReader(&m);
}
