// Length-limited Huffman codes: their lengths, and canonical codes as deflate
// packs them (RFC 1951, section 3.2.2).
#ifndef PYCKPT_HUFFMAN_H_
#define PYCKPT_HUFFMAN_H_

#include <cstdint>
#include <vector>

namespace pyckpt {

// One code: bits in the order in which deflate writes them, first bit lowest.
struct HuffmanCode {
  std::uint16_t bits = 0;
  std::uint16_t length = 0;  // 0: the symbol does not occur
};

// The lengths of the shortest code for these frequencies, or where one of them would exceed
// max_length, of one that is little longer. Symbols of frequency 0 get no code, length 0; a
// single symbol gets one of length 1. At most 2^max_length symbols may occur. Frequencies are
// below 2^48.
std::vector<std::uint8_t> BuildHuffmanLengths(const std::vector<std::uint64_t>& frequencies,
                                              int max_length);

// The same with the codes; max_length is at most 15.
std::vector<HuffmanCode> BuildHuffman(const std::vector<std::uint64_t>& frequencies,
                                      int max_length);

}  // namespace pyckpt

#endif  // PYCKPT_HUFFMAN_H_
