// Bits in the order of deflate (RFC 1951, section 3.1.1) and zstd (RFC 8878): the first is the
// lowest of its byte.
#ifndef PYCKPT_CODEC_BIT_WRITER_H_
#define PYCKPT_CODEC_BIT_WRITER_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace pyckpt {

// Bits fill each byte from its lowest bit up. Every write stores whole words, so the output needs
// kSlackNbytes of room after its end.
class BitWriter {
 public:
  static constexpr std::size_t kSlackNbytes = 16;

  explicit BitWriter(std::uint8_t* out) : out_(out) {}

  // length is at most 56. Bits above length must be zero.
  void Put(std::uint64_t bits, std::uint64_t length) {
    word_ |= bits << used_;
    used_ += length;
    StoreLe64(out_, word_);
    out_ += used_ >> 3;
    word_ >>= used_ & 56;  // used_ is below 64
    used_ &= 7;
  }

  // CPUs use only these bits of the count when they shift a 64-bit word. So the mask costs no
  // instruction.
  static constexpr std::uint64_t kShiftMask = 63;

  static constexpr std::uint64_t kMostOfTwo = 56;

  // Writes a, then b, with fewer instructions than two Put()s and without a branch on their total
  // length. a has 1 to kMostOfTwo bits, b has 0 to kMostOfTwo. Only the lowest eight bits of each
  // length are used; the others may have any value. Cpu::NbytesIn(n) is n / 8 for the lowest eight
  // bits of n.
  template <typename Cpu>
  void PutTwo(std::uint64_t a_bits, std::uint64_t a_length, std::uint64_t b_bits,
              std::uint64_t b_length) {
    word_ |= a_bits << used_;
    const std::uint64_t between = used_ + a_length;  // 1 to 63
    StoreLe64(out_, word_ | b_bits << (between & kShiftMask));
    StoreLe64(out_ + 8, b_bits >> (-between & kShiftMask));
    const std::uint64_t end = between + b_length;
    out_ += Cpu::NbytesIn(end);
    word_ = *out_;  // bits above the used ones are zero
    used_ = end & 7;
  }

  bool aligned() const { return used_ == 0; }

  // Fills the last byte with zero bits and returns the end of the output.
  std::uint8_t* Align() {
    if (used_ != 0) Put(0, 8 - used_);
    return out_;
  }

 private:
  std::uint8_t* out_;
  std::uint64_t word_ = 0;
  std::uint64_t used_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_BIT_WRITER_H_
