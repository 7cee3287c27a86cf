// bzip2's third stage: move-to-front. Each byte is replaced by how many other
// bytes were seen since its last occurrence; runs of zeros, which then abound in
// all but noise, are written as numbers.
#ifndef PYCKPT_CODEC_BZIP2_MTF_H_
#define PYCKPT_CODEC_BZIP2_MTF_H_

#include <array>
#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

// What the Huffman codes are for: RUNA, RUNB, ranks 1 to 255, the block's end.
inline constexpr std::size_t kMostSymbols = 258;

struct RankedBlock {
  std::array<bool, 256> used{};        // which bytes occur
  std::size_t alphabet = 0;            // how many symbols there are; the last is the end
  std::vector<std::uint16_t> symbols;  // the end included; reused, so count says how many
  std::size_t count = 0;
};

// transform is not empty; its bytes are overwritten.
void RankBlock(std::uint8_t* transform, std::size_t nbytes, RankedBlock* out);

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_MTF_H_
