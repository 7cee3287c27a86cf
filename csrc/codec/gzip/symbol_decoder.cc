#include "codec/gzip/symbol_decoder.h"

namespace pyckpt::gzip {

SymbolDecoder::Shape SymbolDecoder::Set(const std::uint8_t* lengths, std::size_t count) {
  count_.fill(0);
  for (std::size_t s = 0; s < count; ++s) ++count_[lengths[s]];
  count_[0] = 0;
  std::uint32_t code = 0;
  std::uint32_t begin = 0;
  for (std::size_t length = 1; length <= kLongest; ++length) {
    code <<= 1;
    first_[length] = static_cast<std::uint16_t>(code);
    begin_[length] = static_cast<std::uint16_t>(begin);
    code += count_[length];
    begin += count_[length];
    if (code > 1U << length) return Shape::kInvalid;
  }
  std::array<std::uint16_t, kLongest + 1> next = begin_;
  for (std::size_t s = 0; s < count; ++s) {
    if (lengths[s] != 0) symbols_[next[lengths[s]]++] = static_cast<std::uint16_t>(s);
  }
  if (code == 1U << kLongest) return Shape::kComplete;
  if (begin == 0) return Shape::kEmpty;
  return begin == 1 && count_[1] == 1 ? Shape::kOne : Shape::kInvalid;
}

SymbolDecoder::Symbol SymbolDecoder::Decode(std::uint64_t bits) const {
  const std::size_t code = Reversed(bits & 0xFFFF);
  for (std::size_t length = 1; length <= kLongest; ++length) {
    // Less than zero, which is a large number, for the codes of shorter lengths. There are none:
    // they ended the loop.
    const std::size_t i = (code >> (16 - length)) - first_[length];
    if (i < count_[length]) {
      return {symbols_[begin_[length] + i], static_cast<std::uint8_t>(length)};
    }
  }
  return {};
}

}  // namespace pyckpt::gzip
