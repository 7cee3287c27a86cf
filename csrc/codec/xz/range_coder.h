// LZMA's range coder for one code. It is the portable implementation, and the fallback when the
// eight-lane one (codec/xz/lanes.h) has decisions that shift too far.
//
// A code is a number that grows digit by digit. Its end is in a window of 64 bits, from the top:
// the last settled byte, the 32 bits of "low" that later decisions can still change, and 24 zero
// bits, room to shift by three bytes. A carry out of the window (the settled byte was 0xFF) is
// added to the bytes already written. This is rare.
#ifndef PYCKPT_CODEC_XZ_RANGE_CODER_H_
#define PYCKPT_CODEC_XZ_RANGE_CODER_H_

#include <cstdint>
#include <cstring>

#include "codec/xz/model.h"

namespace pyckpt::xz {

inline void StoreBe64(std::uint8_t* out, std::uint64_t word) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  std::memcpy(out, &word, sizeof word);
}

// Adds one to the big-endian number that ends just before end.
inline void Carry(std::uint8_t* end) {
  while (++*--end == 0) {
  }
}

class RangeCoder {
 public:
  // Bytes of code that are written but not settled yet. Finish() settles them.
  static constexpr std::size_t kUnsettledNbytes = 4;
  // Every flush writes this many bytes, from the last settled byte on.
  static constexpr std::size_t kFlushNbytes = 8;

  // Starts a code at out. Its first byte is 0, as LZMA requires.
  explicit RangeCoder(std::uint8_t* out) : RangeCoder(out + 1, 0, 0xFFFFFFFF) { *out = 0; }

  // Continues a code. out is just after its last settled byte.
  RangeCoder(std::uint8_t* out, std::uint64_t window, std::uint32_t range)
      : window_(window), out_(out), range_(range) {}

  // Encodes a byte: the decision "no match", then eight from the top bit down.
  [[gnu::always_inline]] void EncodeByte(std::uint32_t byte, std::uint32_t is_literal,
                                         const ByteProbabilities& probabilities) {
    Encode(is_literal, 0);
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; ++i) {
      Encode(probabilities[i], byte >> (7 - i) & 1);
      // At most three decisions, "no match" included, shift by at most 24 bits.
      if (i == 1 || i == 4 || i == 7) Flush();
    }
  }

  // Returns the end of the code. All its bytes are written already.
  std::uint8_t* Finish() const { return out_ + kUnsettledNbytes; }

  // The state between two bytes.
  std::uint8_t* out() const { return out_; }
  std::uint64_t window() const { return window_; }
  std::uint32_t range() const { return range_; }

 private:
  [[gnu::always_inline]] void Encode(std::uint32_t probability, std::uint32_t bit) {
    const std::uint32_t bound = (range_ >> kProbabilityBits) * probability;
    sum_ += bound & (0U - bit);
    range_ = bit != 0 ? range_ - bound : bound;
    const unsigned shift = static_cast<unsigned>(range_ < kRenormalizeBelow) << 3;
    range_ <<= shift;
    sum_ <<= shift;
    shift_ += shift;
  }

  [[gnu::always_inline]] void Flush() {
    const std::uint64_t window = window_ + (sum_ << (24 - shift_));
    if (__builtin_expect(static_cast<long>(window < window_), 0) != 0) Carry(out_ - 1);
    StoreBe64(out_ - 1, window);
    out_ += shift_ >> 3;
    window_ = window << shift_;
    sum_ = 0;
    shift_ = 0;
  }

  std::uint64_t window_;
  std::uint64_t sum_ = 0;  // what the decisions since the flush add to low
  std::uint8_t* out_;
  std::uint32_t range_;
  unsigned shift_ = 0;  // bits by which sum_ was shifted since the flush
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_RANGE_CODER_H_
