// Deflate blocks for float tensors. Mantissas do not repeat, so all there is to
// gain lies in the byte frequencies, and in repeats of one element.
#ifndef PYCKPT_CODEC_GZIP_BLOCK_H_
#define PYCKPT_CODEC_GZIP_BLOCK_H_

#include <cstddef>
#include <vector>

#include "codec/gzip/bit_writer.h"
#include "codec/gzip/block_code.h"
#include "codec/gzip/literals.h"
#include "codec/gzip/plan.h"
#include "codec/repeats.h"
#include "codec/runs.h"

namespace pyckpt::gzip {

// Room that dynamic blocks may need, whatever their codes.
std::size_t DynamicBlocksBound(std::size_t raw_nbytes, std::size_t blocks);

// Writes dynamic blocks; keeps its tables from block to block.
class BlockWriter {
 public:
  // One block, not the last of its stream. *next as in BlockCode; it moves on.
  void Write(const std::vector<Run>& runs, const BlockPlan& plan, const BlockCode& code,
             const std::vector<Repeat>& repeats, std::size_t* next, BitWriter* writer);

 private:
  LiteralWriter literals_;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_BLOCK_H_
