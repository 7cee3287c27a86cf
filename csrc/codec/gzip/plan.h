// Where deflate blocks begin and end in a chunk, and of which kind each is.
#ifndef PYCKPT_CODEC_GZIP_PLAN_H_
#define PYCKPT_CODEC_GZIP_PLAN_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/repeats.h"
#include "codec/runs.h"

namespace pyckpt::gzip {

using Histogram = std::array<std::uint32_t, 256>;

enum class BlockKind {
  kStored,    // noise: nothing to gain
  kLiterals,  // literals with a Huffman code of their own, and repeats
  kMatches,   // a match finder's work
};

struct BlockPlan {
  std::size_t begin;
  std::size_t end;
  BlockKind kind;
  Histogram sample;            // of the bytes outside repeats, as far as it is not chance
  std::size_t sample_nbytes;   // the sum of that
  std::size_t literal_nbytes;  // all bytes outside repeats
};

// The blocks of a chunk, in order and without gaps. Neighbouring stretches of
// the same kind are one block where a joint code costs no more than two; up to
// level 6, where it costs little more.
// No repeat lies in two runs.
std::vector<BlockPlan> PlanBlocks(const std::vector<Run>& runs, const std::vector<Repeat>& repeats,
                                  int level);

// How many blocks there are at most.
std::size_t MostBlocks(const std::vector<Run>& runs);

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_PLAN_H_
