// Bits in bzip2's order: each byte is filled from its highest bit down.
#ifndef PYCKPT_CODEC_BZIP2_BITS_H_
#define PYCKPT_CODEC_BZIP2_BITS_H_

#include <cstdint>
#include <cstring>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

// Every write stores eight bytes, so the output needs kSlackNbytes of room after its end. The
// unused bits of the last byte are zero.
class BitWriter {
 public:
  static constexpr std::size_t kSlackNbytes = 8;
  static constexpr unsigned kMostBits = 56;  // in one Put

  // Continues after the first nbits bits at out.
  BitWriter(std::uint8_t* out, std::uint64_t nbits)
      : begin_(out), out_(out + nbits / 8), used_(nbits % 8) {
    if (used_ != 0) word_ = std::uint64_t{*out_} << 56;
  }

  // Writes the low length bits of bits, highest first. Higher bits must be zero.
  void Put(std::uint64_t bits, unsigned length) {
    // Two shifts, because one shift by 64 (for length 0) would be undefined.
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

// Reads bits from any position in bytes. After the end it reads zeros, and overrun() is true.
class BitReader {
 public:
  static constexpr unsigned kMostBits = 56;  // in one Peek or Read

  BitReader(Span bytes, std::uint64_t bit) : bytes_(bytes), at_(bit / 8) {
    Refill();
    Skip(bit % 8);
  }

  // Makes at least kMostBits bits ready.
  void Refill() {
    if (at_ + sizeof word_ <= bytes_.nbytes) {
      // Loads some bits that are in the word already; they are the same.
      word_ |= LoadBe64(bytes_.data + at_) >> ready_;
      at_ += (63 - ready_) >> 3;
      ready_ |= 56;
      return;
    }
    for (; ready_ <= 56; ready_ += 8, ++at_) {
      const std::uint64_t byte = at_ < bytes_.nbytes ? bytes_.data[at_] : 0;
      word_ |= byte << (56 - ready_);
    }
  }

  // The next length bits. At least 1, and no more than are ready.
  std::uint64_t Peek(unsigned length) const { return word_ >> (64 - length); }

  // Drops length bits. Fewer than 64, and no more than are ready.
  void Skip(unsigned length) {
    word_ <<= length;
    ready_ -= length;
  }

  std::uint64_t Read(unsigned length) {
    Refill();
    const std::uint64_t bits = Peek(length);
    Skip(length);
    return bits;
  }

  std::uint64_t bit() const { return at_ * 8 - ready_; }
  bool overrun() const { return bit() > std::uint64_t{bytes_.nbytes} * 8; }

 private:
  Span bytes_;
  std::uint64_t at_;    // the byte that is loaded next
  unsigned ready_ = 0;  // valid bits in the word, from the top
  std::uint64_t word_ = 0;
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_BITS_H_
