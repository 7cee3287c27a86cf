#include "codec/gzip/deflater.h"

#include <cstdint>

#include "codec/gzip/block_code.h"
#include "codec/gzip/stored_blocks.h"
#include "codec/plan.h"

namespace pyckpt::gzip {
namespace {

BlockSizes SizesAt(int level) {
  constexpr int kLastCoarseLevel = 6;
  return level <= kLastCoarseLevel ? BlockSizes::kCoarse : BlockSizes::kFine;
}

void WriteStored(const std::vector<Run>& runs, std::size_t begin, std::size_t end,
                 BitWriter* writer) {
  ForEachPart(runs, begin, end, [&](Span bytes) { WriteStoredBlocks(bytes, writer); });
}

}  // namespace

std::size_t Deflater::Write(const Chunk& chunk, std::size_t used, Buffer* out) {
  const std::vector<Run>& runs = gatherer_.Gather(chunk, kWindowNbytes);
  const std::size_t stored_bound = StoredBlocksBound(chunk.nbytes, runs.size());
  if (level_ != 0) {
    const std::size_t end = WriteCoded(runs, chunk.nbytes, used, out);
    if (end - used <= stored_bound) return end;
  }
  // Level 0, or the samples were misleading and the coded blocks are too long.
  BitWriter writer(out->Reserve(used + stored_bound + BitWriter::kSlackNbytes) + used);
  WriteStored(runs, 0, chunk.nbytes, &writer);
  return static_cast<std::size_t>(writer.Align() - out->data());
}

std::size_t Deflater::WriteCoded(const std::vector<Run>& runs, std::size_t nbytes, std::size_t used,
                                 Buffer* out) {
  const std::vector<Repeat>& repeats = finder_.FindInRuns(runs);
  const std::size_t bound = DynamicBlocksBound(nbytes, MostBlocks(runs)) + BitWriter::kSlackNbytes;
  BitWriter writer(out->Reserve(used + bound) + used);
  std::size_t next = 0;
  for (const BlockPlan& block : PlanBlocks(runs, repeats, SizesAt(level_))) {
    while (next < repeats.size() && repeats[next].end <= block.begin) ++next;
    if (block.kind == BlockKind::kStored) {
      WriteStored(runs, block.begin, block.end, &writer);
      continue;
    }
    const BlockCode code(block, repeats, next);
    if (block.kind == BlockKind::kLiterals ||
        !matches_.Write(gatherer_.Joined(block.begin, block.end), code.nbits() / 8, &writer)) {
      blocks_.Write(runs, block, code, repeats, &next, &writer);
    }
  }
  const std::uint8_t* end = writer.aligned() ? writer.Align() : WriteEmptyBlock(&writer);
  return static_cast<std::size_t>(end - out->data());
}

}  // namespace pyckpt::gzip
