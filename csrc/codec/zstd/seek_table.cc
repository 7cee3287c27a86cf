#include "codec/zstd/seek_table.h"

#include "codec/zstd/format.h"

namespace pyckpt::zstd {
namespace {

constexpr std::uint32_t kTableMagic = kSkippableMagic | 0xE;
constexpr std::uint32_t kFooterMagic = 0x8F92EAB1;
constexpr std::size_t kFooterNbytes = 9;
constexpr std::size_t kEntryNbytes = 8;
constexpr std::size_t kChecksumNbytes = 4;  // of an entry, if the table has checksums
constexpr std::uint32_t kMostFrames = 0x8000000;

// Of the end of the file. Most tables are in it.
constexpr std::uint64_t kUsualNbytes = std::uint64_t{64} << 10;

// Of the footer's descriptor.
constexpr unsigned kHasChecksums = 0x80;
constexpr unsigned kReserved = 0x7C;

}  // namespace

std::string EncodeSeekTable(const std::vector<FrameSizes>& frames) {
  std::string out;
  if (frames.size() > kMostFrames) return out;
  AppendLe32(&out, kTableMagic);
  AppendLe32(&out, static_cast<std::uint32_t>(frames.size() * kEntryNbytes + kFooterNbytes));
  for (const FrameSizes& frame : frames) {
    AppendLe32(&out, frame.code_nbytes);
    AppendLe32(&out, frame.raw_nbytes);
  }
  AppendLe32(&out, static_cast<std::uint32_t>(frames.size()));
  out.push_back(0);  // no checksums: each frame has its own
  AppendLe32(&out, kFooterMagic);
  return out;
}

std::optional<std::vector<FrameSizes>> DecodeSeekTable(const FileBytes& stored) {
  stored.NeedLast(kUsualNbytes);
  const Span file = stored.bytes();
  if (file.nbytes < kSkippableHeaderNbytes + kFooterNbytes) return std::nullopt;
  const std::uint8_t* footer = file.data + file.nbytes - kFooterNbytes;
  const std::uint64_t frames = LoadLe32(footer);
  const unsigned descriptor = footer[4];
  if (LoadLe32(footer + 5) != kFooterMagic || (descriptor & kReserved) != 0 ||
      frames > kMostFrames) {
    return std::nullopt;
  }
  const std::size_t entry_nbytes =
      kEntryNbytes + ((descriptor & kHasChecksums) != 0 ? kChecksumNbytes : 0);
  const std::uint64_t contents = frames * entry_nbytes + kFooterNbytes;
  if (file.nbytes - kSkippableHeaderNbytes < contents) return std::nullopt;
  const std::uint64_t begin = file.nbytes - kSkippableHeaderNbytes - contents;
  stored.Need(begin, contents + kSkippableHeaderNbytes);
  const std::uint8_t* at = file.data + begin;
  if (LoadLe32(at) != kTableMagic || LoadLe32(at + 4) != contents) return std::nullopt;
  at += kSkippableHeaderNbytes;
  std::vector<FrameSizes> found;
  found.reserve(frames);
  std::uint64_t sum = 0;
  for (; found.size() < frames; at += entry_nbytes) {
    found.push_back({LoadLe32(at), LoadLe32(at + 4)});
    sum += found.back().code_nbytes;
  }
  if (sum != begin) return std::nullopt;
  return found;
}

}  // namespace pyckpt::zstd
