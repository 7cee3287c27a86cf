#include "codec/gzip/encoder.h"

#include <algorithm>
#include <vector>

#include "base/crc32.h"
#include "base/error.h"
#include "codec/bit_writer.h"
#include "codec/gzip/block.h"
#include "codec/gzip/block_code.h"
#include "codec/gzip/chunk_index.h"
#include "codec/gzip/matches.h"
#include "codec/gzip/member.h"
#include "codec/gzip/stored_blocks.h"
#include "codec/plan.h"
#include "codec/repeats.h"
#include "codec/typed_codec.h"

namespace pyckpt::gzip {
namespace {

struct GzipChunk final : EncodedChunk {
  std::uint32_t crc = 0;  // of the raw bytes
};

class DeflateEncoder final : public TypedEncoder<GzipChunk> {
 public:
  explicit DeflateEncoder(int level) : level_(level), matches_(level) {}

 protected:
  void EncodeTyped(const Chunk& chunk, GzipChunk* out) override {
    out->raw_nbytes = chunk.nbytes;
    out->crc = chunk.Crc();
    const std::vector<Run>& runs = gatherer_.Gather(chunk, kWindowNbytes);
    const std::size_t stored_bound = StoredBlocksBound(chunk.nbytes, runs.size());
    if (level_ != 0 && EncodeBlocks(runs, chunk.nbytes, out) <= stored_bound) return;
    // Level 0, or the samples were misleading and the coded blocks are too long.
    BitWriter writer(out->buffer.Reserve(stored_bound + BitWriter::kSlackNbytes));
    WriteStored(runs, 0, chunk.nbytes, &writer);
    Use(out, writer.Align());
  }

 private:
  // The longest distance of a match.
  static constexpr std::size_t kWindowNbytes = std::size_t{32} << 10;

  static BlockSizes SizesAt(int level) {
    constexpr int kLastCoarseLevel = 6;
    return level <= kLastCoarseLevel ? BlockSizes::kCoarse : BlockSizes::kFine;
  }

  static std::uint64_t Use(EncodedChunk* out, const std::uint8_t* end) {
    out->UseBuffer(static_cast<std::size_t>(end - out->buffer.data()));
    return out->nbytes;
  }

  static void WriteStored(const std::vector<Run>& runs, std::size_t begin, std::size_t end,
                          BitWriter* writer) {
    ForEachPart(runs, begin, end, [&](Span bytes) { WriteStoredBlocks(bytes, writer); });
  }

  std::uint64_t EncodeBlocks(const std::vector<Run>& runs, std::size_t nbytes, EncodedChunk* out) {
    FindRepeats(runs);
    BitWriter writer(out->buffer.Reserve(DynamicBlocksBound(nbytes, MostBlocks(runs)) +
                                         BitWriter::kSlackNbytes));
    std::size_t next = 0;
    for (const BlockPlan& block : PlanBlocks(runs, repeats_, SizesAt(level_))) {
      while (next < repeats_.size() && repeats_[next].end <= block.begin) ++next;
      if (block.kind == BlockKind::kStored) {
        WriteStored(runs, block.begin, block.end, &writer);
        continue;
      }
      const BlockCode code(block, repeats_, next);
      if (block.kind == BlockKind::kLiterals ||
          !matches_.Write(gatherer_.Joined(block.begin, block.end), code.nbits() / 8, &writer)) {
        blocks_.Write(runs, block, code, repeats_, &next, &writer);
      }
    }
    return Use(out, writer.aligned() ? writer.Align() : WriteEmptyBlock(&writer));
  }

  void FindRepeats(const std::vector<Run>& runs) {
    repeats_.clear();
    for (const Run& run : runs) {
      for (const Repeat& repeat : finder_.Find(run.bytes)) {
        repeats_.push_back({run.begin + repeat.begin, run.begin + repeat.end, repeat.distance});
      }
    }
  }

  int level_;
  Gatherer gatherer_;
  RepeatFinder finder_{kWindowNbytes};
  std::vector<Repeat> repeats_;
  BlockWriter blocks_;
  MatchWriter matches_;
};

class GzipJoiner final : public TypedJoiner<GzipChunk> {
 public:
  explicit GzipJoiner(IndexPlace index_place) : index_place_(index_place) {}

  std::string Begin() override { return Header(/*flags=*/0); }

  std::string End() override {
    const std::string index = EncodeChunkIndex(kHeaderNbytes, kChunkNbytes, code_nbytes_);
    if (index_place_ == IndexPlace::kOwnMember) {
      return LastBlock({}) + Trailer(crc_, nbytes_) + IndexMember(index);
    }
    Add(Crc32(AsSpan(index)), index.size());
    return LastBlock(index) + Trailer(crc_, nbytes_);
  }

 protected:
  void AppendTyped(GzipChunk* chunk) override {
    Add(chunk->crc, chunk->raw_nbytes);
    code_nbytes_.push_back(chunk->nbytes);
  }

 private:
  // Deflate, no time stamp (so that equal states give equal files), Unix.
  static std::string Header(char flags) { return {'\x1F', '\x8B', 8, flags, 0, 0, 0, 0, 0, 3}; }

  static std::string LastBlock(const std::string& stored) {
    std::string out = {'\x01'};
    AppendLe16(&out, static_cast<std::uint16_t>(stored.size()));
    AppendLe16(&out, static_cast<std::uint16_t>(~stored.size()));
    return out + stored;
  }

  static std::string Trailer(std::uint32_t crc, std::uint64_t nbytes) {
    std::string out;
    AppendLe32(&out, crc);
    AppendLe32(&out, static_cast<std::uint32_t>(nbytes));
    return out;
  }

  // A member without data, with index in an extra field.
  static std::string IndexMember(const std::string& index) {
    std::string out = Header(kExtraFlag);
    AppendLe16(&out, static_cast<std::uint16_t>(kSubfieldNbytes + index.size()));
    out += kSubfieldId;
    AppendLe16(&out, static_cast<std::uint16_t>(index.size()));
    return out + index + LastBlock({}) + Trailer(0, 0);
  }

  void Add(std::uint32_t crc, std::uint64_t nbytes) {
    crc_ = nbytes_ == 0 ? crc : Crc32Combine(crc_, crc, nbytes);
    nbytes_ += nbytes;
  }

  IndexPlace index_place_;
  std::uint32_t crc_ = 0;
  std::uint64_t nbytes_ = 0;
  std::vector<std::uint64_t> code_nbytes_;
};

}  // namespace

std::unique_ptr<EncodedChunk> GzipCodec::NewChunk() const { return std::make_unique<GzipChunk>(); }

std::unique_ptr<ChunkEncoder> GzipCodec::NewEncoder(int level) const {
  return std::make_unique<DeflateEncoder>(level);
}

std::unique_ptr<StreamJoiner> GzipCodec::NewJoiner() const {
  return std::make_unique<GzipJoiner>(index_place_);
}

}  // namespace pyckpt::gzip
