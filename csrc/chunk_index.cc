#include "chunk_index.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "bytes.h"

namespace pyckpt {
namespace {

constexpr std::string_view kMagic = "PYCKPTIX";
constexpr std::size_t kBlockNbytes = 512;
constexpr std::size_t kFixedNbytes = kMagic.size() + 4 + 8 + 8 + 8 + 4 + kMagic.size();
constexpr std::size_t kLongestEntry = 6;  // 42 bits
constexpr std::size_t kMostEntries =
    (kMostIndexNbytes - kBlockNbytes - kFixedNbytes) / kLongestEntry;

// Seven bits a byte, lowest first; the highest bit says that more follow.
void AppendVarint(std::string* out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

}  // namespace

std::string EncodeChunkIndex(std::uint64_t first_offset, std::uint64_t raw_nbytes,
                             const std::vector<std::uint64_t>& code_nbytes) {
  const std::size_t chunks_per_entry =
      std::max<std::size_t>(1, (code_nbytes.size() + kMostEntries - 1) / kMostEntries);
  const std::size_t entries = (code_nbytes.size() + chunks_per_entry - 1) / chunks_per_entry;
  std::string out(kMagic);
  AppendLe32(&out, 1);  // version
  AppendLe64(&out, first_offset);
  AppendLe64(&out, raw_nbytes * chunks_per_entry);
  AppendLe64(&out, entries);
  for (std::size_t i = 0; i < code_nbytes.size(); i += chunks_per_entry) {
    const auto begin = code_nbytes.begin() + static_cast<std::ptrdiff_t>(i);
    const auto end =
        begin + static_cast<std::ptrdiff_t>(std::min(chunks_per_entry, code_nbytes.size() - i));
    AppendVarint(&out, std::accumulate(begin, end, std::uint64_t{0}));
  }
  // Readers come from the end: size and magic are the last things there.
  constexpr std::size_t kTailNbytes = 4 + kMagic.size();
  out.append(PaddingTo(out.size() + kTailNbytes, kBlockNbytes), '\0');
  AppendLe32(&out, static_cast<std::uint32_t>(out.size() + kTailNbytes));
  out.append(kMagic);
  return out;
}

}  // namespace pyckpt
