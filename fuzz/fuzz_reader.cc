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

// One block's LZMA2 data, and a place for its bytes. There is no more slack than the decoder needs.
struct LiteralBlock {
  static constexpr std::size_t kSlackNbytes = pyckpt::xz::LaneFeeder::kSlackNbytes;

  LiteralBlock(const std::uint8_t* data, std::size_t nbytes, std::size_t out_nbytes)
      : code(data, data + nbytes), out(out_nbytes) {}

  pyckpt::xz::LiteralTask Task() {
    pyckpt::xz::LiteralTask task;
    task.code = {code.data(), code.size() - kSlackNbytes};
    task.slack_nbytes = kSlackNbytes;
    task.out = out.data();
    task.out_nbytes = out.size();
    return task;
  }

  std::vector<std::uint8_t> code;
  std::vector<std::uint8_t> out;
};

// Calls the decoder directly: blocks with such code are larger than the inputs here. Decodes the
// input and damaged copies of it at once, in vectors, and each of them alone, without vectors.
void DecodeLiterals(const std::uint8_t* data, std::size_t nbytes) {
  constexpr std::size_t kBlocks = 20;  // more than there are lanes
  constexpr std::size_t kOutNbytes = 2000;
  if (nbytes <= LiteralBlock::kSlackNbytes) return;
  static pyckpt::xz::Lzma2LiteralDecoder decoder;
  std::vector<LiteralBlock> blocks;
  for (std::size_t k = 0; k < kBlocks; ++k) {
    blocks.emplace_back(data, nbytes, k == 1 ? 3 : kOutNbytes);
    if (k > 1) blocks[k].code[k * k * 7919 % nbytes] ^= static_cast<std::uint8_t>(1 << k % 8);
  }
  std::vector<pyckpt::xz::LiteralTask> tasks;
  for (LiteralBlock& block : blocks) tasks.push_back(block.Task());
  decoder.Decode(&tasks);
  for (std::size_t k = 0; k < kBlocks; ++k) {
    LiteralBlock alone(blocks[k].code.data(), nbytes, blocks[k].out.size());
    std::vector<pyckpt::xz::LiteralTask> task = {alone.Task()};
    decoder.Decode(&task);
    if (task[0].decoded != tasks[k].decoded) std::abort();
    if (task[0].decoded && alone.out != blocks[k].out) std::abort();
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
