// Length-limited Huffman codes: their lengths, and canonical codes as deflate
// packs them (RFC 1951, section 3.2.2).
#ifndef PYCKPT_CODEC_HUFFMAN_H_
#define PYCKPT_CODEC_HUFFMAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyckpt {

// Huffman's tree for these frequencies, whose sum is below 2^63. Symbols of frequency 0 are
// not in it.
class HuffmanTree {
 public:
  explicit HuffmanTree(const std::vector<std::uint64_t>& frequencies);

  // The length of each symbol's code. They make the shortest code, or where one of them would
  // exceed max_length, one that is little longer. Symbols outside the tree have none, length 0;
  // a single symbol has one of length 1. At most 2^max_length symbols may be in the tree.
  std::vector<std::uint8_t> Lengths(int max_length) const;

 private:
  std::size_t symbols_;
  std::vector<std::uint16_t> leaves_;         // the rarest first
  std::vector<std::size_t> count_of_length_;  // how many codes, unlimited, have it
};

// One code: bits in the order in which deflate writes them, first bit lowest.
struct HuffmanCode {
  std::uint16_t bits = 0;
  std::uint16_t length = 0;  // 0: the symbol does not occur
};

// The codes that have these lengths, of at most 15.
std::vector<HuffmanCode> CanonicalCodes(const std::vector<std::uint8_t>& lengths);

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_HUFFMAN_H_
