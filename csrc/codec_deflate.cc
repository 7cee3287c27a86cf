#include "codec_deflate.h"

#include <algorithm>
#include <array>
#include <vector>

#include "chunk_index.h"
#include "crc32.h"
#include "deflate_block.h"
#include "deflate_matches.h"
#include "deflate_plan.h"
#include "error.h"
#include "repeats.h"

namespace pyckpt::deflate {
namespace {

class DeflateEncoder final : public ContiguousEncoder {
 public:
  explicit DeflateEncoder(int level) : level_(level), matches_(level) {}

 protected:
  void EncodeBytes(Span raw, const Chunk& chunk, EncodedChunk* out) override {
    out->check = chunk.Crc();
    if (level_ != 0 && EncodeBlocks(raw, out) <= StoredBlocksBound(raw.nbytes)) return;
    // What was asked for, or all there is to do where samples were wrong.
    BitWriter writer(out->buffer.Reserve(StoredBlocksBound(raw.nbytes) + BitWriter::kSlackNbytes));
    Use(out, WriteStoredBlocks(raw, &writer));
  }

 private:
  static constexpr std::size_t kWindowNbytes = std::size_t{32} << 10;  // how far deflate refers

  static std::uint64_t Use(EncodedChunk* out, const std::uint8_t* end) {
    out->UseBuffer(static_cast<std::size_t>(end - out->buffer.data()));
    return out->nbytes;
  }

  std::uint64_t EncodeBlocks(Span raw, EncodedChunk* out) {
    const std::vector<Repeat>& repeats = finder_.Find(raw);
    const std::size_t bound = DynamicBlocksBound(raw.nbytes) + BitWriter::kSlackNbytes;
    BitWriter writer(out->buffer.Reserve(bound));
    std::size_t next = 0;
    for (const BlockPlan& block : PlanBlocks(raw, repeats, level_)) {
      const Span bytes = {raw.data + block.begin, block.end - block.begin};
      while (next < repeats.size() && repeats[next].end <= block.begin) ++next;
      if (block.kind == BlockKind::kStored) {
        WriteStoredBlocks(bytes, &writer);
        continue;
      }
      const BlockCode code(block, repeats, next);
      if (block.kind == BlockKind::kLiterals || !matches_.Write(bytes, code.nbits() / 8, &writer)) {
        blocks_.Write(raw, block, code, repeats, &next, &writer);
      }
    }
    return Use(out, writer.aligned() ? writer.Align() : WriteEmptyBlock(&writer));
  }

  int level_;
  RepeatFinder finder_{kWindowNbytes};
  BlockWriter blocks_;
  MatchWriter matches_;
};

class GzipJoiner final : public StreamJoiner {
 public:
  std::string Begin() override { return {kHeader.begin(), kHeader.end()}; }

  void Append(EncodedChunk* chunk) override {
    Add(chunk->check, chunk->raw_nbytes);
    code_nbytes_.push_back(chunk->nbytes);
  }

  std::string End() override {
    const std::string index = EncodeChunkIndex(kHeader.size(), kChunkNbytes, code_nbytes_);
    Add(Crc32(AsSpan(index)), index.size());
    std::string out = {'\x01'};  // the last block, stored
    AppendLe16(&out, static_cast<std::uint16_t>(index.size()));
    AppendLe16(&out, static_cast<std::uint16_t>(~index.size()));
    out += index;
    AppendLe32(&out, crc_);
    AppendLe32(&out, static_cast<std::uint32_t>(nbytes_));
    return out;
  }

 private:
  // Deflate, no flags and no time stamp (equal states give equal files), Unix.
  static constexpr std::array<char, 10> kHeader = {'\x1F', '\x8B', 8, 0, 0, 0, 0, 0, 0, 3};

  void Add(std::uint32_t crc, std::uint64_t nbytes) {
    crc_ = nbytes_ == 0 ? crc : Crc32Combine(crc_, crc, nbytes);
    nbytes_ += nbytes;
  }

  std::uint32_t crc_ = 0;
  std::uint64_t nbytes_ = 0;
  std::vector<std::uint64_t> code_nbytes_;
};

}  // namespace

std::unique_ptr<ChunkEncoder> GzipCodec::NewEncoder(int level) const {
  return std::make_unique<DeflateEncoder>(level);
}

std::unique_ptr<StreamJoiner> GzipCodec::NewJoiner() const {
  return std::make_unique<GzipJoiner>();
}

}  // namespace pyckpt::deflate
