#include "python/reader.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "base/open_file.h"
#include "base/supply.h"
#include "codec/decoder.h"
#include "codec/formats.h"
#include "python/owned.h"
#include "python/raise_soon.h"
#include "read/inflated_image.h"
#include "read/open_image.h"
#include "read/pickle_check.h"
#include "read/stream_image.h"
#include "read/tar_reader.h"
#include "read/zip_reader.h"

namespace py = pybind11;

namespace pyckpt {
namespace {

using Range = std::pair<std::uint64_t, std::uint64_t>;  // offset, nbytes

Extent ToExtent(const Range& range) { return {range.first, range.second}; }

std::vector<Extent> ToExtents(const std::vector<Range>& ranges) {
  std::vector<Extent> extents;
  extents.reserve(ranges.size());
  for (const Range& range : ranges) extents.push_back(ToExtent(range));
  return extents;
}

Span ToSpan(const py::bytes& bytes) {
  const auto view = bytes.cast<std::string_view>();
  return {reinterpret_cast<const std::uint8_t*>(view.data()), view.size()};
}

// A part of an image's memory that Python owns. The last reference gives the memory back.
struct ImageBytes {
  std::shared_ptr<std::uint8_t> bytes;
  std::size_t nbytes = 0;

  py::buffer_info Buffer() const { return {bytes.get(), static_cast<py::ssize_t>(nbytes)}; }
};

// A Python object that brings bytes into a file: expect(), hold() and release() take ranges.
class PythonSupply final : public Supply {
 public:
  explicit PythonSupply(py::object supply) : supply_(std::move(supply)) {}
  ~PythonSupply() override {
    try {
      const py::gil_scoped_acquire gil;
      supply_ = {};
    } catch (...) {  // this thread cannot have the GIL: rather leave the object behind
      static_cast<void>(supply_.release());
    }
  }

  void Expect(const std::vector<FileRange>& ranges) override { Call("expect", ranges); }
  void Hold(const std::vector<FileRange>& ranges) override { Call("hold", ranges); }

  void Release(const std::vector<FileRange>& ranges) noexcept override {
    try {
      const py::gil_scoped_acquire gil;
      try {
        Call("release", ranges);
      } catch (py::error_already_set& error) {  // Ctrl-C: release() itself does not fail
        RaiseSoon(&error, "releasing bytes of a file");
      }
    } catch (...) {  // NOLINT(bugprone-empty-catch): the bytes stay in memory until the end
    }
  }

  // Ends all waiting with the error. Call it with the GIL.
  void Stop(const py::error_already_set& error) { supply_.attr("stop")(error.value()); }

 private:
  void Call(const char* method, const std::vector<FileRange>& ranges) const {
    const py::gil_scoped_acquire gil;
    std::vector<Range> pairs;
    pairs.reserve(ranges.size());
    for (const FileRange& range : ranges) pairs.emplace_back(range.offset, range.nbytes);
    supply_.attr(method)(pairs);
  }

  py::object supply_;
};

using PythonPoll = std::optional<std::function<void(std::uint64_t)>>;

void Open(py::detail::value_and_holder& place, const std::string& path, std::optional<int> fd,
          const py::object& supply_object, int threads, bool mapped, const PythonPoll& progress) {
  std::shared_ptr<PythonSupply> supply;
  if (!supply_object.is_none()) supply = std::make_shared<PythonSupply>(supply_object);
  ReadOptions options;
  options.path = path;
  options.threads = threads;
  options.mapped = mapped;
  options.poll = [progress, supply](std::uint64_t nbytes) {
    const py::gil_scoped_acquire gil;
    try {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (progress) (*progress)(nbytes);
    } catch (const py::error_already_set& error) {
      if (supply) supply->Stop(error);  // workers may wait for bytes
      throw;
    }
  };
  // progress is a Python object, so the GIL must be held while it is copied and released.
  Construct(&place, OpenImage(fd ? std::make_shared<OpenFile>(*fd, path, supply)
                                 : std::make_shared<OpenFile>(path),
                              options));
}

// (offset, nbytes, code_offset, message, code_is_in_file)
using DamageTuple = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, py::str, bool>;

std::vector<DamageTuple> ToTuples(const std::vector<Damage>& damages) {
  std::vector<DamageTuple> tuples;
  tuples.reserve(damages.size());
  for (const Damage& d : damages) {
    tuples.emplace_back(d.extent.offset, d.extent.nbytes, d.code_offset, py::str(d.message),
                        d.code_is_in_file);
  }
  return tuples;
}

std::pair<std::vector<std::uint32_t>, std::vector<DamageTuple>> Fill(
    StreamImage* image, const std::vector<Range>& ranges, bool keep, bool checksums) {
  const std::vector<Extent> extents = ToExtents(ranges);
  FillResult result;
  {
    const py::gil_scoped_release release;
    result = image->Fill(extents, keep, checksums);
  }
  return {std::move(result.crcs), ToTuples(result.damages)};
}

std::vector<DamageTuple> Finish(StreamImage* image) {
  std::vector<Damage> damages;
  {
    const py::gil_scoped_release release;
    damages = image->Finish();
  }
  return ToTuples(damages);
}

const char* NameOf(const Format* format) { return format == nullptr ? "" : format->compression; }

const char* Compression(const StreamImage& image) { return NameOf(image.format()); }

bool IsIndex(const StreamImage& image, const py::bytes& raw) {
  return image.format() != nullptr && image.format()->decompressor->IsIndex(ToSpan(raw));
}

std::optional<std::uint64_t> Nbytes(const StreamImage& image) {
  if (image.nbytes() == kUnknownNbytes) return std::nullopt;
  return image.nbytes();
}

// (name, type, header_offset, offset, nbytes, link)
using MemberTuple =
    std::tuple<py::bytes, py::str, std::uint64_t, std::uint64_t, std::uint64_t, py::bytes>;

// A reader, and the image that it reads.
struct PythonTar {
  explicit PythonTar(std::shared_ptr<StreamImage> its_image)
      : image(std::move(its_image)), tar(image.get()) {}

  std::shared_ptr<StreamImage> image;
  TarReader tar;
};

std::optional<MemberTuple> Next(PythonTar* tar) {
  TarMember member;
  bool found = false;
  {
    const py::gil_scoped_release release;
    found = tar->tar.Next(&member);
  }
  if (!found) return std::nullopt;
  return MemberTuple(member.name, std::string(1, member.type), member.header_offset,
                     member.data.offset, member.data.nbytes, member.link);
}

std::vector<ZipEntry> Directory(StreamImage* image, const Range& range) {
  const py::gil_scoped_release release;
  return ReadZipDirectory(image, ToExtent(range));
}

std::vector<Range> Locate(StreamImage* image, const std::vector<ZipEntry>& entries) {
  const py::gil_scoped_release release;
  std::vector<Range> ranges;
  ranges.reserve(entries.size());
  for (const Extent& extent : LocateZipData(image, entries)) {
    ranges.emplace_back(extent.offset, extent.nbytes);
  }
  return ranges;
}

// The image of deflated records, and where each of them is in it.
std::pair<py::object, std::vector<Range>> Inflate(const std::shared_ptr<StreamImage>& image,
                                                  const std::vector<ZipEntry>& entries) {
  std::vector<Extent> code;
  {
    const py::gil_scoped_release release;
    code = LocateZipData(image.get(), entries);
  }
  std::vector<Range> places;
  for (const Extent& extent : PlaceInflated(entries)) {
    places.emplace_back(extent.offset, extent.nbytes);
  }
  return {Owned(NewInflatedImage(image, entries, code)), std::move(places)};
}

}  // namespace

void BindReader(py::module_* m) {
  py::class_<ImageBytes, std::shared_ptr<ImageBytes>>(*m, "ImageBytes", py::buffer_protocol())
      .def_buffer(&ImageBytes::Buffer);

  py::class_<ZipEntry>(*m, "ZipEntry")
      .def_property_readonly("name", [](const ZipEntry& e) { return py::bytes(e.name); })
      .def_readonly("nbytes", &ZipEntry::nbytes)
      .def_readonly("code_nbytes", &ZipEntry::code_nbytes)
      .def_readonly("crc", &ZipEntry::crc)
      .def_readonly("stored", &ZipEntry::stored)
      .def_readonly("deflated", &ZipEntry::deflated)
      .def_readonly("index", &ZipEntry::index)
      .def_readonly("header_offset", &ZipEntry::header_offset);

  py::class_<StreamImage, std::shared_ptr<StreamImage>>(*m, "StreamImage")
      .def("__init__", &Open, py::detail::is_new_style_constructor(), py::arg("path"),
           py::arg("fd") = py::none(), py::kw_only(), py::arg("supply") = py::none(),
           py::arg("threads"), py::arg("mapped"), py::arg("progress"))
      .def_property_readonly("compression", &Compression)
      .def_property_readonly("nbytes", &Nbytes)
      .def_property_readonly("placed_nbytes", &StreamImage::placed_nbytes)
      .def_property_readonly("trailing_nbytes", &StreamImage::trailing_nbytes)
      .def("is_index", &IsIndex, py::arg("raw"))
      .def("code_nbytes", [](const StreamImage& image,
                             const Range& range) { return image.CodeNbytes(ToExtent(range)); })
      .def(
          "require",
          [](StreamImage* image, const Range& range) { return image->Require(ToExtent(range)); },
          py::call_guard<py::gil_scoped_release>())
      .def("keep", [](StreamImage* image, const Range& range) { image->Keep(ToExtent(range)); })
      .def("expect", [](StreamImage* image,
                        const std::vector<Range>& ranges) { image->Expect(ToExtents(ranges)); })
      .def("bring",
           [](StreamImage* image, const std::vector<Range>& ranges) {
             const std::vector<Extent> extents = ToExtents(ranges);
             const py::gil_scoped_release release;
             image->Bring(extents);
           })
      .def("fill", &Fill, py::arg("ranges"), py::kw_only(), py::arg("keep"), py::arg("checksums"))
      .def("finish", &Finish)
      .def("read",
           [](StreamImage* image, const Range& range) {
             const Extent extent = ToExtent(range);
             return py::bytes(reinterpret_cast<const char*>(image->Bytes(extent)), extent.nbytes);
           })
      .def("copy",
           [](StreamImage* image, const Range& range, std::uintptr_t address) {
             const Extent extent = ToExtent(range);
             const std::uint8_t* bytes = image->Bytes(extent);
             if (extent.nbytes == 0) return;
             // NOLINTNEXTLINE(performance-no-int-to-ptr): Python hands out addresses as integers.
             std::memcpy(reinterpret_cast<void*>(address), bytes, extent.nbytes);
           })
      .def("address",
           [](StreamImage* image, const Range& range) {
             return reinterpret_cast<std::uintptr_t>(image->Bytes(ToExtent(range)));
           })
      .def("forget", [](StreamImage* image, const Range& range) { image->Forget(ToExtent(range)); })
      .def("release",
           [](StreamImage* image, const Range& range) { image->Release(ToExtent(range)); })
      .def("take", [](StreamImage* image, const Range& range) {
        auto taken = std::make_shared<ImageBytes>();
        taken->bytes = image->Take(ToExtent(range));
        taken->nbytes = range.second;
        return Owned(std::move(taken));
      });

  py::class_<PythonTar, std::shared_ptr<PythonTar>>(*m, "TarReader")
      .def(
          "__init__",
          [](py::detail::value_and_holder& place, std::shared_ptr<StreamImage> image) {
            Construct(&place, std::make_shared<PythonTar>(std::move(image)));
          },
          py::detail::is_new_style_constructor(), py::arg("image"))
      .def_property_readonly("offset", [](const PythonTar& tar) { return tar.tar.offset(); })
      .def("next", &Next);

  m->def("compression_of", [](const py::bytes& raw) { return NameOf(FindFormat(ToSpan(raw))); });
  m->def("check_pickle", [](const py::bytes& pickle) { CheckPickle(ToSpan(pickle)); });
  m->def("read_zip_directory", &Directory);
  m->def("locate_zip_data", &Locate);
  m->def("inflate_zip_records", &Inflate);
}

}  // namespace pyckpt
