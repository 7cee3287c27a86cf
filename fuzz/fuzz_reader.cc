// Reads any bytes as an archive. The reader has to return what they hold or throw an
// Error. It must read nothing outside of them and allocate no memory for false claims.
// Run by `make fuzz` with libFuzzer, AddressSanitizer and UBSan.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/cpu.h"
#include "base/error.h"
#include "chunks_in_turn.h"
#include "codec/xz/decoding_lane.h"
#include "codec/xz/decoding_turns.h"
#include "codec/xz/decoding_vectors.h"
#include "codec/xz/literal_decoder.h"
#include "read/inflated_image.h"
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

void ReadRecords(StreamImage* image, const std::vector<Extent>& places, bool keep) {
  const pyckpt::FillResult result = image->Fill(places, keep, /*checksums=*/true);
  if (!keep || !result.damages.empty()) return;
  for (const Extent& place : places) {
    const std::shared_ptr<std::uint8_t> bytes = image->Take(place);
    volatile std::uint8_t last = place.nbytes == 0 ? 0 : bytes.get()[place.nbytes - 1];
    (void)last;
  }
}

// What load and verify do with a torch file.
void ReadZip(const std::shared_ptr<StreamImage>& image, Extent extent, bool keep) {
  if (extent.nbytes > kMostNbytes) return;
  const std::vector<pyckpt::ZipEntry> entries = pyckpt::ReadZipDirectory(image.get(), extent);
  const std::vector<Extent> places = pyckpt::LocateZipData(image.get(), entries);
  std::vector<Extent> stored;
  std::vector<Extent> code;
  std::vector<pyckpt::ZipEntry> deflated;
  std::uint64_t deflated_nbytes = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (entries[i].stored) stored.push_back(places[i]);
    if (!entries[i].deflated) continue;
    deflated_nbytes += entries[i].nbytes;
    deflated.push_back(entries[i]);
    code.push_back(places[i]);
  }
  ReadRecords(image.get(), stored, keep);
  if (deflated_nbytes > kMostNbytes) return;
  const auto inflated = pyckpt::NewInflatedImage(image, deflated, code);
  ReadRecords(inflated.get(), pyckpt::PlaceInflated(deflated), keep);
}

void ReadTar(const std::shared_ptr<StreamImage>& image, bool keep) {
  pyckpt::TarReader tar(image.get());
  pyckpt::TarMember member;
  for (int i = 0; i < kMostMembers && tar.Next(&member); ++i) {
    if (IsZip(image.get(), member.data)) ReadZip(image, member.data, keep);
  }
}

void Read(const std::string& path, bool mapped, bool keep) {
  pyckpt::ReadOptions options;
  options.mapped = mapped;
  const std::shared_ptr<StreamImage> image =
      pyckpt::OpenImage(std::make_shared<pyckpt::OpenFile>(path), options);
  if (IsZip(image.get(), {0, 4})) {
    if (image->nbytes() <= kMostNbytes) ReadZip(image, {0, image->nbytes()}, keep);
  } else {
    ReadTar(image, keep);
  }
  if (image->nbytes() <= kMostNbytes) image->Finish();
}

// Calls the decoder directly: blocks with such code are larger than the inputs here. Decodes the
// input and damaged copies of it at once.
void DecodeLiterals(const std::uint8_t* data, std::size_t nbytes) {
  constexpr std::size_t kBlocks = 20;  // more than there are lanes
  constexpr std::size_t kOutNbytes = 2000;
  constexpr std::size_t kSlackNbytes = pyckpt::xz::LaneFeeder::kSlackNbytes;
  if (nbytes <= kSlackNbytes) return;
  std::vector<std::vector<std::uint8_t>> codes(kBlocks);
  std::vector<std::vector<std::uint8_t>> outs(kBlocks);
  std::vector<pyckpt::xz::LiteralTask> tasks(kBlocks);
  for (std::size_t k = 0; k < kBlocks; ++k) {
    codes[k].assign(data, data + nbytes);  // no more slack than the decoder needs
    if (k > 1) codes[k][k * k * 7919 % nbytes] ^= static_cast<std::uint8_t>(1 << k % 8);
    outs[k].resize(k == 1 ? 3 : kOutNbytes);
    tasks[k].code = {codes[k].data(), nbytes - kSlackNbytes};
    tasks[k].slack_nbytes = kSlackNbytes;
    tasks[k].out = outs[k].data();
    tasks[k].out_nbytes = outs[k].size();
  }
  static pyckpt::xz::Lzma2LiteralDecoder decoder;
  decoder.Decode(&tasks);
}

// Any kernel that decodes literals has to do the same, whatever the code is. Where the model
// expects zeros, ones take more code than any other decisions do.
void CompareKernels(const std::uint8_t* data, std::size_t nbytes) {
  using pyckpt::xz::DecodingLane;
  constexpr std::size_t kOutNbytes = 100;
  using Outs = std::array<std::array<std::uint8_t, kOutNbytes>, pyckpt::xz::kVectorLanes>;
  if (!pyckpt::UseAvx2() || nbytes == 0) return;
  std::vector<std::uint8_t> code(data, data + nbytes);
  code.resize(pyckpt::xz::CodeReach(kOutNbytes) + pyckpt::xz::kVectorLanes);
  static std::array<DecodingLane, pyckpt::xz::kVectorLanes> vectors;
  static std::array<DecodingLane, pyckpt::xz::kVectorLanes> turns;
  Outs vector_outs{};
  Outs turn_outs{};
  for (std::size_t k = 0; k < vectors.size(); ++k) {
    DecodingLane& lane = vectors[k];
    lane.range = 0xFFFFFFFF;
    lane.code = pyckpt::LoadLe32(code.data() + k);
    lane.next = code.data() + k;
    lane.position = data[0] + k;
    lane.previous = data[k % nbytes];
    lane.bits.context = k % 5;
    lane.bits.position = (4 - k % 5) * (k & 1);
    lane.is_literal = pyckpt::xz::kEven;
    lane.has_match = false;
    const std::uint16_t probability =
        data[0] % 3 == k % 3 ? pyckpt::xz::kTarget0 : pyckpt::xz::kEven;
    for (auto& subtree : lane.model.upper) subtree.fill(probability);
    for (auto& subtree : lane.model.middle) subtree.fill(probability);
    for (auto& subtree : lane.model.lower) subtree.fill(probability);
    turns[k] = lane;
    lane.out = k == data[0] % 20U ? nullptr : vector_outs[k].data();
    turns[k].out = turn_outs[k].data();
  }
  // The first call's state is where the second one goes on.
  for (const std::size_t n : {std::size_t{data[0] % 50U + 1}, std::size_t{50}}) {
    pyckpt::xz::DecodeInVectors(&vectors, n);
    for (std::size_t k = 0; k < turns.size(); ++k) {
      DecodingLane* lane = &turns[k];
      if (vectors[k].out == nullptr) continue;
      pyckpt::xz::DecodeInTurn(&lane, 1, n);
      const DecodingLane& other = vectors[k];
      if (lane->range != other.range || lane->code != other.code || lane->next != other.next ||
          lane->position != other.position || lane->previous != other.previous ||
          lane->is_literal != other.is_literal || lane->has_match != other.has_match ||
          turn_outs[k] != vector_outs[k]) {
        std::abort();
      }
    }
  }
}

// Takes the bytes as chunks of equal lengths. Calls the decoder directly, since no file that small
// has several.
void InflateInTurn(const std::uint8_t* data, std::size_t nbytes) {
  constexpr std::size_t kMostChunks = 8;
  constexpr std::uint64_t kRawNbytes = 300;
  if (nbytes == 0) return;
  const std::size_t count = 1 + data[0] % kMostChunks;
  const std::size_t code_nbytes = (nbytes - 1) / count;
  std::vector<pyckpt::CodeBlock> chunks;
  for (std::size_t i = 0; i < count; ++i) {
    chunks.push_back({8 * (1 + i * code_nbytes), 8 * code_nbytes, 0, data[0] * kRawNbytes});
  }
  pyckpt::fuzz::CheckChunksInTurn({data, nbytes}, chunks);
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
  CompareKernels(data, nbytes);
  InflateInTurn(data, nbytes);
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
