// Length-limited Huffman codes: code lengths, and canonical codes in deflate's bit order (RFC 1951,
// section 3.2.2).
#ifndef PYCKPT_CODEC_HUFFMAN_H_
#define PYCKPT_CODEC_HUFFMAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyckpt {

// The Huffman tree for the given frequencies. Their sum must be below 2^63. Symbols of frequency 0
// are not in the tree.
class HuffmanTree {
 public:
  explicit HuffmanTree(const std::vector<std::uint64_t>& frequencies);

  // The length of each symbol's code, in bits, at most max_length. The code is optimal if no length
  // would exceed max_length without the limit, else almost optimal. Symbols outside the tree get
  // length 0 (no code). If the tree has one symbol, its length is 1. The tree may have at most
  // 2^max_length symbols.
  std::vector<std::uint8_t> Lengths(int max_length) const;

 private:
  std::size_t symbols_;
  std::vector<std::uint16_t> leaves_;         // symbols, rarest first
  std::vector<std::size_t> count_of_length_;  // how many codes have each length, without a limit
};

// How many bits symbols of these frequencies take with codes of these lengths.
std::uint64_t CodedNbits(const std::vector<std::uint64_t>& frequencies,
                         const std::vector<std::uint8_t>& lengths);

// One code. Its bits are in the order in which deflate writes them: the first bit is the lowest.
struct HuffmanCode {
  std::uint16_t bits = 0;
  std::uint16_t length = 0;  // 0: the symbol does not occur
};

// The canonical codes for these lengths. No length exceeds 15.
std::vector<HuffmanCode> CanonicalCodes(const std::vector<std::uint8_t>& lengths);

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_HUFFMAN_H_
