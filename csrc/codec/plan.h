// Divides a chunk into blocks with Huffman codes of their own, and chooses the kind of each.
#ifndef PYCKPT_CODEC_PLAN_H_
#define PYCKPT_CODEC_PLAN_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/repeats.h"
#include "codec/runs.h"

namespace pyckpt {

using Histogram = std::array<std::uint32_t, 256>;

enum class BlockKind {
  kStored,    // noise, which cannot be compressed
  kLiterals,  // literals with their own Huffman code, and long repeats
  kMatches,   // for a match finder
};

// How much a block of its own must save, and how large samples are. Fine blocks are smaller in all,
// coarse ones are written faster: they must save almost four times as much.
enum class BlockSizes { kCoarse, kFine };

struct BlockPlan {
  std::size_t begin;  // offsets in the chunk
  std::size_t end;
  BlockKind kind;
  Histogram sample;            // of bytes outside repeats, smoothed
  std::size_t sample_nbytes;   // the sum of sample
  std::size_t literal_nbytes;  // all bytes outside repeats
};

// The blocks of a chunk, in order and without gaps. Neighbouring stretches of the same kind share a
// block if two blocks would not save enough bits to pay for a second header. No repeat may lie in
// two runs.
std::vector<BlockPlan> PlanBlocks(const std::vector<Run>& runs, const std::vector<Repeat>& repeats,
                                  BlockSizes sizes);

// How many blocks PlanBlocks() returns at most.
std::size_t MostBlocks(const std::vector<Run>& runs);

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_PLAN_H_
