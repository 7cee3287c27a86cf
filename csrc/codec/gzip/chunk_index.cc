#include "codec/gzip/chunk_index.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "base/bytes.h"
#include "base/varint.h"

namespace pyckpt::gzip {
namespace {

constexpr std::string_view kMagic = "PYCKPTIX";
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kBlockNbytes = 512;
constexpr std::size_t kFixedNbytes = kMagic.size() + 4 + 8 + 8 + 8 + 4 + kMagic.size();
constexpr std::size_t kTailNbytes = 4 + kMagic.size();
constexpr std::size_t kLongestEntry = 6;  // 42 bits
constexpr std::size_t kMostEntries =
    (kMostIndexNbytes - kBlockNbytes - kFixedNbytes) / kLongestEntry;

bool HasMagic(const std::uint8_t* at) {
  return std::equal(kMagic.begin(), kMagic.end(), reinterpret_cast<const char*>(at));
}

}  // namespace

std::string EncodeChunkIndex(std::uint64_t first_offset, std::uint64_t raw_nbytes,
                             const std::vector<std::uint64_t>& code_nbytes) {
  const std::size_t chunks_per_entry =
      std::max<std::size_t>(1, (code_nbytes.size() + kMostEntries - 1) / kMostEntries);
  const std::size_t entries = (code_nbytes.size() + chunks_per_entry - 1) / chunks_per_entry;
  std::string out(kMagic);
  AppendLe32(&out, kVersion);
  AppendLe64(&out, first_offset);
  AppendLe64(&out, raw_nbytes * chunks_per_entry);
  AppendLe64(&out, entries);
  for (std::size_t i = 0; i < code_nbytes.size(); i += chunks_per_entry) {
    const auto begin = code_nbytes.begin() + static_cast<std::ptrdiff_t>(i);
    const auto end =
        begin + static_cast<std::ptrdiff_t>(std::min(chunks_per_entry, code_nbytes.size() - i));
    AppendVarint(&out, std::accumulate(begin, end, std::uint64_t{0}));
  }
  // Readers start at the end, so the size and the magic come last.
  out.append(PaddingTo(out.size() + kTailNbytes, kBlockNbytes), '\0');
  AppendLe32(&out, static_cast<std::uint32_t>(out.size() + kTailNbytes));
  out.append(kMagic);
  return out;
}

std::optional<ChunkIndex> DecodeChunkIndex(Span raw) {
  if (raw.nbytes < kFixedNbytes) return std::nullopt;
  const std::uint8_t* end = raw.data + raw.nbytes - kTailNbytes;
  ChunkIndex index;
  index.nbytes = LoadLe32(end);
  if (index.nbytes < kFixedNbytes || index.nbytes > std::min(raw.nbytes, kMostIndexNbytes) ||
      !HasMagic(end + 4)) {
    return std::nullopt;
  }
  const std::uint8_t* at = raw.data + raw.nbytes - index.nbytes;
  if (!HasMagic(at) || LoadLe32(at + kMagic.size()) != kVersion) return std::nullopt;
  at += kMagic.size() + 4;
  index.first_offset = LoadLe64(at);
  index.raw_nbytes = LoadLe64(at + 8);
  const std::uint64_t entries = LoadLe64(at + 16);
  at += 24;
  if (entries > static_cast<std::uint64_t>(end - at)) return std::nullopt;
  index.code_nbytes.reserve(entries);
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < entries; ++i) {
    const std::optional<std::uint64_t> nbytes = ReadVarint(&at, end);
    if (!nbytes || __builtin_add_overflow(sum, *nbytes, &sum)) return std::nullopt;
    index.code_nbytes.push_back(*nbytes);
  }
  return index;
}

}  // namespace pyckpt::gzip
