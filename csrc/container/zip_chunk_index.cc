#include "container/zip_chunk_index.h"

#include <algorithm>
#include <optional>

#include "base/varint.h"

namespace pyckpt {
namespace {

constexpr char kVersion = 1;
// All extra fields of a record have at most 65,535 bytes. The others need fewer than 100.
constexpr std::size_t kMostNbytes = 65'000;
constexpr std::size_t kLongestVarint = 6;  // 42 bits
constexpr std::size_t kMostEntries = kMostNbytes / kLongestVarint - 4;

std::vector<DeflatedChunk> Grouped(const std::vector<DeflatedChunk>& chunks) {
  const std::size_t per_entry = (chunks.size() + kMostEntries - 1) / kMostEntries;
  std::vector<DeflatedChunk> entries;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    if (i % per_entry == 0) entries.emplace_back();
    entries.back().raw_nbytes += chunks[i].raw_nbytes;
    entries.back().code_nbytes += chunks[i].code_nbytes;
  }
  return entries;
}

}  // namespace

std::string EncodeZipChunkIndex(const std::vector<DeflatedChunk>& chunks) {
  if (chunks.size() < 2) return {};
  const std::vector<DeflatedChunk> entries = Grouped(chunks);
  std::string data(1, kVersion);
  AppendVarint(&data, entries.size());
  AppendVarint(&data, entries[0].raw_nbytes);
  AppendVarint(&data, entries[1].raw_nbytes);
  for (const DeflatedChunk& entry : entries) AppendVarint(&data, entry.code_nbytes);
  std::string field;
  AppendLe16(&field, kZipChunkIndexId);
  AppendLe16(&field, static_cast<std::uint16_t>(data.size()));
  return field + data;
}

std::vector<DeflatedChunk> DecodeZipChunkIndex(Span data, std::uint64_t raw_nbytes,
                                               std::uint64_t code_nbytes) {
  if (data.nbytes == 0 || data.data[0] != kVersion) return {};
  const std::uint8_t* at = data.data + 1;
  const std::uint8_t* end = data.data + data.nbytes;
  const std::optional<std::uint64_t> count = ReadVarint(&at, end);
  const std::optional<std::uint64_t> first = ReadVarint(&at, end);
  const std::optional<std::uint64_t> middle = ReadVarint(&at, end);
  if (!count || !first || !middle || *count < 2 || *count > data.nbytes) return {};
  std::vector<DeflatedChunk> chunks;
  chunks.reserve(*count);
  for (std::uint64_t i = 0; i < *count; ++i) {
    const std::optional<std::uint64_t> code = ReadVarint(&at, end);
    const std::uint64_t raw = i == 0 ? *first : std::min(*middle, raw_nbytes);
    if (!code || *code > code_nbytes || raw > raw_nbytes || raw == 0) return {};
    chunks.push_back({raw, *code});
    raw_nbytes -= raw;
    code_nbytes -= *code;
  }
  if (raw_nbytes != 0 || code_nbytes != 0 || at != end) return {};
  return chunks;
}

}  // namespace pyckpt
