// The symbols of deflate blocks (RFC 1951).
#ifndef PYCKPT_CODEC_GZIP_FORMAT_H_
#define PYCKPT_CODEC_GZIP_FORMAT_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace pyckpt::gzip {

inline constexpr std::size_t kLiterals = 256;
inline constexpr std::size_t kEndOfBlock = 256;
inline constexpr std::size_t kLengthSymbols = 29;
inline constexpr std::size_t kDistanceSymbols = 30;
inline constexpr int kLongest = 15;  // in bits, of codes
inline constexpr std::size_t kShortestMatch = 3;
inline constexpr std::size_t kLongestMatch = 258;

// Deflate cannot expand more than this: a match of 258 bytes takes at least two bits.
inline constexpr std::uint64_t kMostExpansion = 1032;

// An empty stored block, marked as the last one (section 3.2.4).
inline constexpr std::array<std::uint8_t, 5> kEmptyLastBlock = {1, 0, 0, 0xFF, 0xFF};
// The same as a block of fixed codes (section 3.2.6). It is the shortest end of a stream.
inline constexpr std::array<std::uint8_t, 2> kShortestLastBlock = {3, 0};

// The order in which a dynamic block gives the lengths of the code-length code
// (RFC 1951, section 3.2.7).
inline constexpr std::array<std::size_t, 19> kLengthCodeOrder = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                                 11, 4,  12, 3, 13, 2, 14, 1, 15};

// The shortest match of each length symbol, from 257 on (section 3.2.5).
inline constexpr std::array<std::uint16_t, kLengthSymbols> kLengthBase = {
    3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
    31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};

inline unsigned LengthExtraBits(std::size_t symbol) {
  if (symbol < 8 || symbol == kLengthSymbols - 1) return 0;
  return static_cast<unsigned>(symbol / 4 - 1);
}

// The shortest distance of each distance symbol.
inline constexpr std::array<std::uint16_t, kDistanceSymbols> kDistanceBase = {
    1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
    193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};

inline std::size_t DistanceSymbol(std::size_t distance) {
  return static_cast<std::size_t>(
      std::upper_bound(kDistanceBase.begin(), kDistanceBase.end(), distance) -
      kDistanceBase.begin() - 1);
}

inline unsigned DistanceExtraBits(std::size_t symbol) {
  return symbol < 4 ? 0 : static_cast<unsigned>(symbol / 2 - 1);
}

inline std::size_t LengthSymbol(std::size_t nbytes) {
  return static_cast<std::size_t>(std::upper_bound(kLengthBase.begin(), kLengthBase.end(), nbytes) -
                                  kLengthBase.begin() - 1);
}

// Splits a match into matches of lengths that deflate has, and calls match(nbytes) for each. nbytes
// is at least kShortestMatch.
template <typename Match>
void SplitMatch(std::size_t nbytes, Match match) {
  while (nbytes > kLongestMatch) {
    const std::size_t n =
        nbytes - kLongestMatch < kShortestMatch ? nbytes - kShortestMatch : kLongestMatch;
    match(n);
    nbytes -= n;
  }
  match(nbytes);
}

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_FORMAT_H_
