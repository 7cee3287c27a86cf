// bzip2's last stage: up to six Huffman codes a block. Each group of 50 symbols
// is written in the code that suits it best.
#ifndef PYCKPT_CODEC_BZIP2_HUFFMAN_H_
#define PYCKPT_CODEC_BZIP2_HUFFMAN_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/bzip2/format.h"
#include "codec/bzip2/mtf.h"

namespace pyckpt::bzip2 {

// Decoders have to take 20; the reference encoder keeps to 17.
inline constexpr int kLongestCode = 17;

struct GroupCodes {
  std::size_t tables = 0;  // 2 to 6
  // Of every symbol of the alphabet: each has a code in each table.
  std::array<std::array<std::uint8_t, kMostSymbols>, kMostTables> lengths{};
  std::vector<std::uint8_t> selectors;  // the table of each group
  std::uint64_t nbits = 0;              // of all symbols together
};

// Sets out for the block's symbols.
void ChooseCodes(const RankedBlock& block, GroupCodes* out);

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_HUFFMAN_H_
