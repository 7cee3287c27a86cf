#include "codec/xz/matches.h"

#include <algorithm>
#include <array>
#include <new>
#include <string>

#include "base/error.h"

namespace pyckpt::xz {

void RequireLzma(lzma_ret status, const char* doing) {
  if (status == LZMA_OK) return;
  if (status == LZMA_MEM_ERROR) throw std::bad_alloc();
  throw Error(ErrorKind::kCodec,
              std::string("liblzma: ") + doing + " failed with code " + std::to_string(status));
}

lzma_options_lzma MatchOptions(int preset, LiteralBits bits, std::size_t raw_nbytes) {
  lzma_options_lzma options{};
  lzma_lzma_preset(&options, static_cast<std::uint32_t>(preset));
  options.lc = bits.context;
  options.lp = bits.position;
  options.pb = bits.position;  // matches of whole elements start at the same position
  // A block refers only to itself, so a larger dictionary would waste memory.
  const auto all =
      static_cast<std::uint32_t>(std::max<std::size_t>(raw_nbytes, LZMA_DICT_SIZE_MIN));
  options.dict_size = std::min(options.dict_size, all);
  return options;
}

std::size_t Lzma2MatchesBound(std::size_t raw_nbytes) {
  return lzma_block_buffer_bound(raw_nbytes);
}

std::uint8_t* WriteLzma2Matches(Span raw, lzma_options_lzma options, std::uint8_t* out) {
  const std::array<lzma_filter, 2> filters = {
      {{LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, nullptr}}};
  std::size_t used = 0;
  RequireLzma(lzma_raw_buffer_encode(filters.data(), nullptr, raw.data, raw.nbytes, out, &used,
                                     Lzma2MatchesBound(raw.nbytes)),
              "a block");
  return out + used;
}

}  // namespace pyckpt::xz
