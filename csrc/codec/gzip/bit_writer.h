// Bits as deflate orders them (RFC 1951, section 3.1.1).
#ifndef PYCKPT_CODEC_GZIP_BIT_WRITER_H_
#define PYCKPT_CODEC_GZIP_BIT_WRITER_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace pyckpt::gzip {

// Bits fill each byte from its lowest bit up. Every write stores whole words, so the
// output needs kSlackNbytes of room behind its end.
class BitWriter {
 public:
  static constexpr std::size_t kSlackNbytes = 16;

  explicit BitWriter(std::uint8_t* out) : out_(out) {}

  // length <= 57; bits above length are zero.
  void Put(std::uint64_t bits, std::uint64_t length) {
    word_ |= bits << used_;
    used_ += length;
    StoreLe64(out_, word_);
    out_ += used_ >> 3;
    word_ >>= used_ & 56;  // it is below 64
    used_ &= 7;
  }

  // What a shift by a 64-bit number looks at: such a mask costs no instruction.
  static constexpr std::uint64_t kShiftMask = 63;

  static constexpr std::uint64_t kMostOfTwo = 56;

  // Both at once, a of 1 to kMostOfTwo bits and b of so many at most: fewer instructions, without
  // a branch on how long they are together. Of the lengths only the lowest eight bits count.
  // Cpu::NbytesIn(n) is n / 8 for the lowest eight bits of n.
  template <typename Cpu>
  void PutTwo(std::uint64_t a_bits, std::uint64_t a_length, std::uint64_t b_bits,
              std::uint64_t b_length) {
    word_ |= a_bits << used_;
    const std::uint64_t between = used_ + a_length;  // 1 to 63
    StoreLe64(out_, word_ | b_bits << (between & kShiftMask));
    StoreLe64(out_ + 8, b_bits >> (-between & kShiftMask));
    const std::uint64_t end = between + b_length;
    out_ += Cpu::NbytesIn(end);
    word_ = *out_;  // all above its bits is zero
    used_ = end & 7;
  }

  bool aligned() const { return used_ == 0; }

  // Fills the last byte with zeros and returns the end.
  std::uint8_t* Align() {
    if (used_ != 0) Put(0, 8 - used_);
    return out_;
  }

 private:
  std::uint8_t* out_;
  std::uint64_t word_ = 0;
  std::uint64_t used_ = 0;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_BIT_WRITER_H_
