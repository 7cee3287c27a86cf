#include "codec/bzip2/encoder.h"

#include <array>

#include "codec/bzip2/bits.h"
#include "codec/bzip2/block.h"
#include "codec/bzip2/format.h"
#include "codec/typed_codec.h"

namespace pyckpt::bzip2 {
namespace {

// The header always says 9. The stream has only one header, which is an upper bound for all its
// blocks.
constexpr int kHeaderLevel = 9;
// A block may hold at most its nominal size minus this, in run-length coded bytes.
constexpr std::size_t kBlockReserve = 19;

std::uint32_t Fold(std::uint32_t combined, std::uint32_t blocks) {
  const std::uint32_t turns = blocks % 32;
  return turns == 0 ? combined : combined << turns | combined >> (32 - turns);
}

std::uint64_t BitsAt(const std::uint8_t* data, std::uint64_t bit, int nbits) {
  std::uint64_t value = 0;
  for (int i = 0; i < nbits; ++i, ++bit) {
    value = value << 1 | (data[bit >> 3] >> (7 - (bit & 7)) & 1);
  }
  return value;
}

struct Bzip2Chunk final : EncodedChunk {
  std::uint32_t crc = 0;     // its blocks' CRCs, combined as in the stream's checksum
  std::uint32_t blocks = 0;  // how many blocks the code holds
  std::uint64_t nbits = 0;   // of the code, before it is shifted

  // Set by the joiner, because the chunk's code may begin within a byte.
  std::uint32_t shift = 0;  // bits of that byte that are used already
  std::uint8_t carry = 0;   // those bits
};

class Bzip2Encoder final : public ContiguousEncoder<Bzip2Chunk> {
 public:
  explicit Bzip2Encoder(int level) : level_(level) {}

 protected:
  void EncodeBytes(Span raw, const Chunk& /*chunk*/, Bzip2Chunk* out) override {
    const std::size_t limit =
        std::size_t{100'000} * static_cast<std::size_t>(level_) - kBlockReserve;
    out->crc = 0;
    out->blocks = 0;
    out->nbits = 0;
    for (std::size_t at = 0; at < raw.nbytes;) {
      const Span rest = {raw.data + at, raw.nbytes - at};
      const BlockEncoder::Block block = encoder_.Append(rest, limit, &out->buffer, &out->nbits);
      out->crc = Fold(out->crc, 1) ^ block.crc;
      ++out->blocks;
      at += block.raw_nbytes;
    }
    out->UseBuffer((out->nbits + 7) / 8);
  }

 private:
  int level_;
  BlockEncoder encoder_;
};

class Bzip2Joiner final : public TypedJoiner<Bzip2Chunk> {
 public:
  std::string Begin() override { return {'B', 'Z', 'h', '0' + kHeaderLevel}; }

  std::string End() override {
    std::array<std::uint8_t, 1 + (kMagicBits + kCrcBits) / 8 + BitWriter::kSlackNbytes> last{};
    last[0] = carry_;
    BitWriter bits(last.data(), used_);
    bits.Put(kEndMagic, kMagicBits);
    bits.Put(crc_, kCrcBits);
    return {reinterpret_cast<const char*>(last.data()), (bits.nbits() + 7) / 8};
  }

 protected:
  void AppendTyped(Bzip2Chunk* chunk) override {
    crc_ = Fold(crc_, chunk->blocks) ^ chunk->crc;
    chunk->shift = used_;
    chunk->carry = carry_;
    const std::uint64_t total = used_ + chunk->nbits;
    chunk->nbytes = total / 8;
    used_ = total % 8;
    // A block is longer than a byte, so all left-over bits belong to this chunk.
    carry_ = 0;
    if (used_ != 0) {
      const int nbits = static_cast<int>(used_);
      const std::uint64_t bits = BitsAt(chunk->buffer.data(), chunk->nbits - used_, nbits);
      carry_ = static_cast<std::uint8_t>(bits << (8 - nbits));
    }
  }

  void SettleTyped(Bzip2Chunk* chunk) const override {
    std::uint8_t* p = chunk->buffer.data();
    if (chunk->shift != 0) {
      unsigned before = chunk->carry;
      for (std::uint64_t i = 0; i < chunk->nbytes; ++i) {
        const unsigned byte = p[i];
        p[i] = static_cast<std::uint8_t>(before | byte >> chunk->shift);
        before = byte << (8 - chunk->shift) & 0xFF;
      }
    }
    chunk->UseBuffer(chunk->nbytes);
  }

 private:
  std::uint32_t crc_ = 0;
  std::uint32_t used_ = 0;  // bits of the byte that the next chunk completes
  std::uint8_t carry_ = 0;  // those bits, high first
};

}  // namespace

std::unique_ptr<EncodedChunk> Bzip2Codec::NewChunk() const {
  return std::make_unique<Bzip2Chunk>();
}

std::unique_ptr<ChunkEncoder> Bzip2Codec::NewEncoder(int level) const {
  return std::make_unique<Bzip2Encoder>(level);
}

std::unique_ptr<StreamJoiner> Bzip2Codec::NewJoiner() const {
  return std::make_unique<Bzip2Joiner>();
}

}  // namespace pyckpt::bzip2
