// Deflate blocks for float tensors. Mantissas do not repeat. So the gain comes from byte
// frequencies and from the long repeats that codec/repeats.h finds.
#ifndef PYCKPT_CODEC_GZIP_BLOCK_H_
#define PYCKPT_CODEC_GZIP_BLOCK_H_

#include <cstddef>
#include <vector>

#include "codec/bit_writer.h"
#include "codec/gzip/block_code.h"
#include "codec/literal_writer.h"
#include "codec/plan.h"
#include "codec/repeats.h"
#include "codec/runs.h"

namespace pyckpt::gzip {

// How many bytes dynamic blocks may take at most, with any codes.
std::size_t DynamicBlocksBound(std::size_t raw_nbytes, std::size_t blocks);

// Writes dynamic blocks. Keeps the memory of its tables between blocks.
class BlockWriter {
 public:
  // Writes one block, which is not the last of its stream. On entry, *next is the first repeat that
  // may end after the block's begin, as in BlockCode; it is advanced.
  void Write(const std::vector<Run>& runs, const BlockPlan& plan, const BlockCode& code,
             const std::vector<Repeat>& repeats, std::size_t* next, BitWriter* writer);

 private:
  LiteralWriter literals_{LiteralOrder::kForward};
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_BLOCK_H_
