// bzip2's last stage: two to six Huffman codes per block. Each group of 50 symbols is written in
// the code that suits it best.
#ifndef PYCKPT_CODEC_BZIP2_HUFFMAN_H_
#define PYCKPT_CODEC_BZIP2_HUFFMAN_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/bzip2/format.h"
#include "codec/bzip2/mtf.h"

namespace pyckpt::bzip2 {

// In bits. Decoders must accept 20; the reference encoder uses at most 17.
inline constexpr int kLongestCode = 17;

struct GroupCodes {
  std::size_t tables = 0;  // 2 to 6
  // Code lengths in bits. Every symbol of the alphabet has a code in each table.
  std::array<std::array<std::uint8_t, kMostSymbols>, kMostTables> lengths{};
  std::vector<std::uint8_t> selectors;  // the table of each group
  std::uint64_t nbits = 0;              // of all coded symbols together
};

// Chooses the codes for the block's symbols. Sets all of out.
void ChooseCodes(const RankedBlock& block, GroupCodes* out);

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_HUFFMAN_H_
