// Reads any bytes as an archive. The reader has to return what they hold or throw an
// Error. It must read nothing outside of them and allocate no memory for false claims.
// Run by `make fuzz` with libFuzzer, AddressSanitizer and UBSan.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "codec/xz/literal_decoder.h"
#include "read/open_image.h"
#include "read/pickle_check.h"
#include "read/stream_image.h"
#include "read/tar_reader.h"
#include "read/zip_reader.h"

namespace {

using pyckpt::Extent;
using pyckpt::StreamImage;

constexpr int kMostMembers = 100;
// Larger members would really need the memory; this test skips them.
constexpr std::uint64_t kMostNbytes = std::uint64_t{64} << 20;

// The path of a file without a name that holds the bytes.
std::string PathOf(const std::uint8_t* data, std::size_t nbytes) {
  static const int fd = memfd_create("fuzz", 0);
  if (fd < 0 || ftruncate(fd, 0) != 0 ||
      pwrite(fd, data, nbytes, 0) != static_cast<ssize_t>(nbytes)) {
    std::abort();
  }
  return "/proc/self/fd/" + std::to_string(fd);
}

bool IsZip(StreamImage* image, Extent extent) {
  if (extent.nbytes < 4 || !image->Require({extent.offset, 4})) return false;
  const std::uint8_t* start = image->Address(extent.offset);
  return start[0] == 'P' && start[1] == 'K' && start[2] == 3 && start[3] == 4;
}

// What load and verify do with a torch file.
void ReadZip(StreamImage* image, Extent extent, bool keep) {
  if (extent.nbytes > kMostNbytes) return;
  const std::vector<pyckpt::ZipEntry> entries = pyckpt::ReadZipDirectory(image, extent);
  const std::vector<Extent> places = pyckpt::LocateZipData(image, entries);
  std::vector<Extent> stored;
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (entries[i].stored) stored.push_back(places[i]);
  }
  const pyckpt::FillResult result = image->Fill(stored, keep, /*checksums=*/true);
  if (!keep || !result.damages.empty()) return;
  for (const Extent& place : stored) {
    const std::shared_ptr<std::uint8_t> bytes = image->Take(place);
    volatile std::uint8_t last = place.nbytes == 0 ? 0 : bytes.get()[place.nbytes - 1];
    (void)last;
  }
}

void ReadTar(StreamImage* image, bool keep) {
  pyckpt::TarReader tar(image);
  pyckpt::TarMember member;
  for (int i = 0; i < kMostMembers && tar.Next(&member); ++i) {
    if (IsZip(image, member.data)) ReadZip(image, member.data, keep);
  }
}

void Read(const std::string& path, bool mapped, bool keep) {
  pyckpt::ReadOptions options;
  options.mapped = mapped;
  const std::shared_ptr<StreamImage> image = pyckpt::OpenImage(path, options);
  if (IsZip(image.get(), {0, 4})) {
    if (image->nbytes() <= kMostNbytes) ReadZip(image.get(), {0, image->nbytes()}, keep);
  } else {
    ReadTar(image.get(), keep);
  }
  if (image->nbytes() <= kMostNbytes) image->Finish();
}

// Calls the decoder directly: blocks with such code are larger than the inputs here.
void DecodeLiterals(const std::uint8_t* data, std::size_t nbytes) {
  constexpr std::size_t kOutNbytes = 2000;
  using Decoder = pyckpt::xz::Lzma2LiteralDecoder;
  if (nbytes < Decoder::kSlackNbytes) return;
  const std::vector<std::uint8_t> code(data, data + nbytes);  // no slack behind it
  std::vector<std::uint8_t> out(kOutNbytes);
  static Decoder decoder;
  for (const std::size_t out_nbytes : {std::size_t{3}, kOutNbytes}) {
    decoder.Decode({code.data(), nbytes - Decoder::kSlackNbytes}, out.data(), out_nbytes);
  }
}

void CheckPickle(const std::uint8_t* data, std::size_t nbytes) {
  const std::vector<std::uint8_t> pickle(data, data + nbytes);  // no slack behind it
  try {
    pyckpt::CheckPickle({pickle.data(), nbytes});
  } catch (const pyckpt::Error&) {  // most inputs are refused
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t nbytes) {
  DecodeLiterals(data, nbytes);
  CheckPickle(data, nbytes);
  const std::string path = PathOf(data, nbytes);
  for (const bool mapped : {false, true}) {
    try {
      Read(path, mapped, /*keep=*/mapped);
    } catch (const pyckpt::Error& error) {
      if (error.kind() == pyckpt::ErrorKind::kArgument) std::abort();  // a wrong call
    }
  }
  return 0;
}
