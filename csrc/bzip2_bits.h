// Bits as bzip2 packs them: each byte from its highest bit down.
#ifndef PYCKPT_BZIP2_BITS_H_
#define PYCKPT_BZIP2_BITS_H_

#include <cstdint>
#include <cstring>

namespace pyckpt::bzip2 {

// Every write stores eight bytes, so the output needs that much room behind its
// end. What is left of the last byte is zero.
class BitWriter {
 public:
  static constexpr std::size_t kSlackNbytes = 8;
  static constexpr unsigned kMostBits = 56;  // in one Put

  // Goes on behind the first nbits at out.
  BitWriter(std::uint8_t* out, std::uint64_t nbits)
      : begin_(out), out_(out + nbits / 8), used_(nbits % 8) {
    if (used_ != 0) word_ = std::uint64_t{*out_} << 56;
  }

  // Bits above length are zero.
  void Put(std::uint64_t bits, unsigned length) {
    // In two steps: a length of 0 must not shift by all 64 bits.
    word_ |= bits << (63 - used_ - length) << 1;
    used_ += length;
    Store(word_);
    out_ += used_ >> 3;
    word_ <<= used_ & ~7U;
    used_ &= 7;
  }

  std::uint64_t nbits() const { return static_cast<std::uint64_t>(out_ - begin_) * 8 + used_; }

 private:
  void Store(std::uint64_t word) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    std::memcpy(out_, &word, sizeof word);
  }

  std::uint8_t* begin_;
  std::uint8_t* out_;
  unsigned used_;
  std::uint64_t word_ = 0;
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_BZIP2_BITS_H_
