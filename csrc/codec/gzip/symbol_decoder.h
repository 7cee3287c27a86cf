// Decodes one symbol of any Huffman code of deflate (RFC 1951, section 3.2.2). It needs no table
// that is as large as the longest code asks for, so it is ready soon. literal_rounds.h is for what
// occurs often.
#ifndef PYCKPT_CODEC_GZIP_SYMBOL_DECODER_H_
#define PYCKPT_CODEC_GZIP_SYMBOL_DECODER_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/gzip/format.h"

namespace pyckpt::gzip {

class SymbolDecoder {
 public:
  static constexpr std::size_t kMostSymbols = 288;

  // How a set of code lengths uses the space of all codes.
  enum class Shape {
    kEmpty,     // no symbol has a code
    kOne,       // one symbol has one, of one bit
    kComplete,  // any bits begin with one code
    kInvalid,   // anything else
  };

  struct Symbol {
    std::uint16_t value = 0;
    std::uint8_t nbits = 0;  // 0: the bits begin with no code
  };

  // Sets the code to that of these lengths, of at most 15 bits, 0 for symbols without a code. count
  // is at most kMostSymbols. Decode() may be called unless the shape is invalid.
  Shape Set(const std::uint8_t* lengths, std::size_t count);

  // The symbol whose code is at the lower end of bits, of which at least 15 count.
  Symbol Decode(std::uint64_t bits) const;

  // Calls each(symbol, bits) for all symbols whose codes have this length. bits is the code as it
  // stands in the stream, the first bit lowest.
  template <typename Each>
  void ForEachOfLength(std::size_t length, Each each) const {
    for (std::size_t i = 0; i < count_[length]; ++i) {
      const std::size_t code = first_[length] + i;
      each(symbols_[begin_[length] + i], Reversed(code) >> (16 - length));
    }
  }

 private:
  // The lowest 16 bits in reverse order.
  static std::size_t Reversed(std::size_t bits) {
    bits = (bits & 0x5555) << 1 | (bits >> 1 & 0x5555);
    bits = (bits & 0x3333) << 2 | (bits >> 2 & 0x3333);
    bits = (bits & 0x0F0F) << 4 | (bits >> 4 & 0x0F0F);
    return (bits & 0x00FF) << 8 | (bits >> 8 & 0x00FF);
  }

  // Of each length.
  std::array<std::uint16_t, kLongest + 1> count_{};
  std::array<std::uint16_t, kLongest + 1> first_{};  // the first code
  std::array<std::uint16_t, kLongest + 1> begin_{};  // where its symbols begin
  std::array<std::uint16_t, kMostSymbols> symbols_{};
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_SYMBOL_DECODER_H_
