#include "codec/zstd/frames.h"

#include <zstd.h>

#include <optional>

#include "codec/zstd/format.h"
#include "codec/zstd/seek_table.h"

namespace pyckpt::zstd {
namespace {

bool IsSkipped(Span file, std::uint64_t at) {
  return file.nbytes - at >= kSkippableHeaderNbytes &&
         (LoadLe32(file.data + at) & ~0xFU) == kSkippableMagic;
}

// A block of equal bytes has the most raw bytes for its size.
std::uint64_t MostRawNbytes(std::uint64_t code_nbytes) {
  return code_nbytes / (kBlockHeaderNbytes + 1) * kMostInBlock;
}

void Append(std::uint64_t code_nbytes, std::uint64_t raw_nbytes, Frames* frames) {
  CodeBlock block;
  block.code_bit = frames->used_nbytes * 8;
  block.code_nbits = code_nbytes * 8;
  block.raw_offset = 0;
  if (!frames->blocks.empty()) {
    const CodeBlock& before = frames->blocks.back();
    block.raw_offset = before.raw_offset + before.raw_nbytes;
  }
  block.raw_nbytes = raw_nbytes;
  frames->blocks.push_back(block);
  frames->used_nbytes += code_nbytes;
}

// None if a size cannot be right.
std::optional<Frames> FromTable(const std::vector<FrameSizes>& table) {
  Frames frames;
  frames.blocks.reserve(table.size());
  for (const FrameSizes& frame : table) {
    if (frame.code_nbytes < kSkippableHeaderNbytes || frame.raw_nbytes > kMostBlockNbytes ||
        frame.raw_nbytes > MostRawNbytes(frame.code_nbytes)) {
      return std::nullopt;
    }
    Append(frame.code_nbytes, frame.raw_nbytes, &frames);
  }
  return frames;
}

Frames Walk(const FileBytes& stored) {
  stored.NeedAll();
  const Span file = stored.bytes();
  Frames frames;
  while (FrameBegins(file, frames.used_nbytes)) {
    const std::uint8_t* at = file.data + frames.used_nbytes;
    const std::size_t left = file.nbytes - frames.used_nbytes;
    const unsigned long long raw_nbytes = ZSTD_getFrameContentSize(at, left);
    // A size that is not known is larger than any.
    static_assert(ZSTD_CONTENTSIZE_UNKNOWN > kMostBlockNbytes);
    static_assert(ZSTD_CONTENTSIZE_ERROR > kMostBlockNbytes);
    if (raw_nbytes > kMostBlockNbytes) return {};
    const std::size_t code_nbytes = ZSTD_findFrameCompressedSize(at, left);
    if (ZSTD_isError(code_nbytes) != 0 || raw_nbytes > MostRawNbytes(code_nbytes)) return {};
    Append(code_nbytes, raw_nbytes, &frames);
  }
  return frames;
}

}  // namespace

bool HasMagic(Span file, std::uint64_t at) {
  return file.nbytes - at >= sizeof kFrameMagic && LoadLe32(file.data + at) == kFrameMagic;
}

std::uint64_t SkipFrames(Span file, std::uint64_t at) {
  while (IsSkipped(file, at)) {
    const std::uint64_t nbytes =
        kSkippableHeaderNbytes + std::uint64_t{LoadLe32(file.data + at + 4)};
    if (nbytes > file.nbytes - at) break;
    at += nbytes;
  }
  return at;
}

bool FrameBegins(Span file, std::uint64_t at) { return HasMagic(file, at) || IsSkipped(file, at); }

Frames FindFrames(const FileBytes& file) {
  std::optional<Frames> frames;
  if (const auto table = DecodeSeekTable(file)) frames = FromTable(*table);
  if (frames) {
    // The table is the last frame.
    Append(file.bytes().nbytes - frames->used_nbytes, 0, &*frames);
  } else {
    frames = Walk(file);
  }
  if (frames->blocks.size() < 2) return {};
  return *std::move(frames);
}

}  // namespace pyckpt::zstd
