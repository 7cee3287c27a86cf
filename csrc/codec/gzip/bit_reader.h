// Reads the bits of a deflate stream: the lowest bit of each byte comes first.
#ifndef PYCKPT_CODEC_GZIP_BIT_READER_H_
#define PYCKPT_CODEC_GZIP_BIT_READER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace pyckpt::gzip {

// Never reads outside [begin, end). All bits from end on are zeros to it, so whoever decodes looks
// at overrun() before trusting what was decoded.
class BitReader {
 public:
  BitReader() = default;
  // begin and end count bytes of file, and end is not behind its end. The file's bytes must stay
  // valid.
  BitReader(Span file, std::uint64_t begin, std::uint64_t end)
      : data_(file.data), at_(8 * begin), end_(8 * end) {}

  // In bits from the start of the file.
  std::uint64_t at() const { return at_; }
  std::uint64_t end() const { return end_; }
  void Move(std::uint64_t at) { at_ = at; }

  bool overrun() const { return at_ > end_; }

  // The next 57 bits or more, the first one lowest.
  std::uint64_t Peek() const {
    if (at_ >= end_) return 0;
    const std::uint8_t* next = data_ + at_ / 8;
    const std::uint64_t left = end_ / 8 - at_ / 8;
    if (left >= 8) return LoadLe64(next) >> at_ % 8;
    std::uint64_t word = 0;
    for (std::uint64_t i = 0; i < left; ++i) word |= std::uint64_t{next[i]} << (8 * i);
    return word >> at_ % 8;
  }

  void Skip(std::size_t nbits) { at_ += nbits; }

  // Takes up to 32 bits.
  std::uint32_t Take(std::size_t nbits) {
    const auto bits = static_cast<std::uint32_t>(Peek() & ((std::uint64_t{1} << nbits) - 1));
    Skip(nbits);
    return bits;
  }

  // Goes on to the next byte if it is within one.
  void Align() { at_ = (at_ + 7) / 8 * 8; }

  // Takes the next nbytes bytes, or those that are left. It must stand on a byte.
  Span TakeBytes(std::size_t nbytes) {
    const std::uint64_t left = overrun() ? 0 : (end_ - at_) / 8;
    const Span bytes{data_ + at_ / 8,
                     static_cast<std::size_t>(std::min<std::uint64_t>(nbytes, left))};
    at_ += 8 * std::uint64_t{bytes.nbytes};
    return bytes;
  }

 private:
  const std::uint8_t* data_ = nullptr;
  std::uint64_t at_ = 0;
  std::uint64_t end_ = 0;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_BIT_READER_H_
