#include "codec/zstd/encoder.h"

#include <algorithm>
#include <vector>

#include "codec/plan.h"
#include "codec/repeats.h"
#include "codec/typed_codec.h"
#include "codec/zstd/literal_code.h"
#include "codec/zstd/literal_frame.h"
#include "codec/zstd/matches.h"
#include "codec/zstd/seek_table.h"

namespace pyckpt::zstd {
namespace {

// One chunk may become several frames: those with matches are frames of their own.
struct ZstdChunk final : EncodedChunk {
  std::vector<FrameSizes> frames;
};

class ZstdEncoder final : public TypedEncoder<ZstdChunk> {
 public:
  explicit ZstdEncoder(int level) : matches_(level) {}

 protected:
  void EncodeTyped(const Chunk& chunk, ZstdChunk* out) override {
    out->raw_nbytes = chunk.nbytes;
    out->frames.clear();
    const std::vector<Run>& runs = gatherer_.Gather(chunk, kInPlaceNbytes);
    const std::vector<Repeat>& repeats = finder_.FindInRuns(runs);
    const std::vector<BlockPlan> plan = PlanBlocks(runs, repeats, BlockSizes::kCoarse);
    std::uint8_t* at =
        out->buffer.Reserve(LiteralFrameWriter::Bound(chunk.nbytes, MostBlocks(runs)));
    bool is_open = false;
    const auto close = [&](std::size_t end) {
      if (is_open) at = Note(frame_begin_, end, at, frame_.End(), out);
      is_open = false;
    };
    for (const BlockPlan& block : plan) {
      const LiteralCode code(block);
      const Span matches = CompressMatches(block, code);
      if (matches.nbytes != 0) {
        close(block.begin);
        at = Note(block.begin, block.end, at, std::copy_n(matches.data, matches.nbytes, at), out);
        continue;
      }
      if (!is_open) {
        frame_.Begin(runs, repeats, block.begin, at);
        frame_begin_ = block.begin;
        is_open = true;
      }
      frame_.Append(block, code);
    }
    close(chunk.nbytes);
    out->UseBuffer(static_cast<std::size_t>(at - out->buffer.data()));
  }

 private:
  // Smaller pieces of a chunk are copied together.
  static constexpr std::size_t kInPlaceNbytes = std::size_t{32} << 10;

  // The block as libzstd's frame. Empty if literals are expected to be as short, or if the plan
  // expects no matches. Valid until the next call.
  Span CompressMatches(const BlockPlan& block, const LiteralCode& code) {
    if (block.kind != BlockKind::kMatches) return {};
    const std::size_t most_nbytes = std::min(code.nbytes(), block.end - block.begin);
    std::uint8_t* begin = compressed_.Reserve(most_nbytes);
    const std::uint8_t* end =
        matches_.Write(gatherer_.Joined(block.begin, block.end), most_nbytes, begin);
    if (end == nullptr) return {};
    return {begin, static_cast<std::size_t>(end - begin)};
  }

  // Notes the sizes of a frame of the chunk's bytes [begin, end) and returns where its code ends.
  static std::uint8_t* Note(std::size_t begin, std::size_t end, const std::uint8_t* code,
                            std::uint8_t* code_end, ZstdChunk* out) {
    out->frames.push_back(
        {static_cast<std::uint32_t>(code_end - code), static_cast<std::uint32_t>(end - begin)});
    return code_end;
  }

  Gatherer gatherer_;
  RepeatFinder finder_{kChunkNbytes};
  LiteralFrameWriter frame_;
  std::size_t frame_begin_ = 0;
  MatchCompressor matches_;
  Buffer compressed_;
};

class ZstdJoiner final : public TypedJoiner<ZstdChunk> {
 public:
  std::string End() override { return EncodeSeekTable(frames_); }

 protected:
  void AppendTyped(ZstdChunk* chunk) override {
    frames_.insert(frames_.end(), chunk->frames.begin(), chunk->frames.end());
  }

 private:
  std::vector<FrameSizes> frames_;
};

}  // namespace

std::unique_ptr<EncodedChunk> ZstdCodec::NewChunk() const { return std::make_unique<ZstdChunk>(); }

std::unique_ptr<ChunkEncoder> ZstdCodec::NewEncoder(int level) const {
  return std::make_unique<ZstdEncoder>(level);
}

std::unique_ptr<StreamJoiner> ZstdCodec::NewJoiner() const {
  return std::make_unique<ZstdJoiner>();
}

}  // namespace pyckpt::zstd
