// bzip2's third stage: move-to-front. Each byte is replaced by its rank: how many different bytes
// were seen since its last occurrence. Runs of zeros are then frequent, except in noise, and are
// written as numbers.
#ifndef PYCKPT_CODEC_BZIP2_MTF_H_
#define PYCKPT_CODEC_BZIP2_MTF_H_

#include <array>
#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

// The symbols that the Huffman codes encode: RUNA, RUNB, ranks 1 to 255, the block's end.
inline constexpr std::size_t kMostSymbols = 258;

struct RankedBlock {
  std::array<bool, 256> used{};        // which bytes occur
  std::size_t alphabet = 0;            // how many different symbols; the last is the end
  std::vector<std::uint16_t> symbols;  // with the end; reused, so only the first count are valid
  std::size_t count = 0;
};

// Sets all of out. transform is not empty; its bytes are overwritten.
void RankBlock(std::uint8_t* transform, std::size_t nbytes, RankedBlock* out);

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_MTF_H_
