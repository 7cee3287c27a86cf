#include "codec_bzip2.h"

#include <bzlib.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "error.h"

namespace pyckpt::bzip2 {
namespace {

constexpr std::uint64_t kEndMagic = 0x177245385090;  // the square root of pi
constexpr int kMagicBits = 48;
constexpr int kCrcBits = 32;
constexpr std::size_t kHeaderNbytes = 4;  // "BZh9"
// Every header must say 9: the stream has one, and it bounds all its blocks.
constexpr int kHeaderLevel = 9;
// After run-length coding a block may hold this much less than its nominal size.
constexpr std::size_t kBlockReserve = 19;

std::uint32_t Fold(std::uint32_t combined, std::uint32_t blocks) {
  const std::uint32_t turns = blocks % 32;
  return turns == 0 ? combined : combined << turns | combined >> (32 - turns);
}

// The longest prefix that run-length codes to at most limit bytes. A run of 4
// to 255 equal bytes becomes four of them and a count (bzip2's first stage).
std::size_t BlockPrefix(Span raw, std::size_t limit) {
  constexpr std::size_t kRunCoded = 4;
  constexpr std::size_t kRunLongest = 255;
  std::size_t coded = 0;
  std::size_t at = 0;
  while (at < raw.nbytes) {
    std::size_t run = 1;
    while (run < kRunLongest && at + run < raw.nbytes && raw.data[at + run] == raw.data[at]) ++run;
    const std::size_t cost = run < kRunCoded ? run : kRunCoded + 1;
    if (coded + cost > limit) break;
    coded += cost;
    at += run;
  }
  return at;
}

std::uint64_t BitsAt(const std::uint8_t* data, std::uint64_t bit, int nbits) {
  std::uint64_t value = 0;
  for (int i = 0; i < nbits; ++i, ++bit) {
    value = value << 1 | (data[bit >> 3] >> (7 - (bit & 7)) & 1);
  }
  return value;
}

// Where the blocks of a whole stream end: its end mark, its checksum and up to
// seven bits of padding follow.
std::uint64_t EndOfBlocks(const std::uint8_t* stream, std::size_t nbytes) {
  for (unsigned padding = 0; padding < 8; ++padding) {
    const std::uint64_t bit = 8 * std::uint64_t{nbytes} - padding - kCrcBits - kMagicBits;
    if (BitsAt(stream, bit, kMagicBits) == kEndMagic) return bit;
  }
  throw Error(ErrorKind::kCodec, "libbz2: a stream without an end mark");
}

// Appends bit strings; the unused bits of the last byte are zero.
class BitAppender {
 public:
  explicit BitAppender(std::uint8_t* out) : out_(out) {}

  void Append(const std::uint8_t* from, std::uint64_t first_bit, std::uint64_t nbits) {
    for (; nbits >= 8; nbits -= 8, first_bit += 8) {
      const std::uint8_t* p = from + (first_bit >> 3);
      const unsigned skip = first_bit & 7;
      const unsigned byte = skip == 0 ? *p : (p[0] << skip | p[1] >> (8 - skip)) & 0xFF;
      Put(byte, 8);
    }
    if (nbits != 0) {
      Put(static_cast<unsigned>(BitsAt(from, first_bit, static_cast<int>(nbits))),
          static_cast<unsigned>(nbits));
    }
  }

  std::uint64_t nbits() const { return nbits_; }

 private:
  void Put(unsigned value, unsigned length) {
    const unsigned used = nbits_ & 7;
    std::uint8_t* at = out_ + (nbits_ >> 3);
    if (used == 0) at[0] = 0;
    const unsigned wide = value << (16 - length - used);  // two bytes, high first
    at[0] = static_cast<std::uint8_t>(at[0] | wide >> 8);
    if (used + length > 8) at[1] = static_cast<std::uint8_t>(wide);
    nbits_ += length;
  }

  std::uint8_t* out_;
  std::uint64_t nbits_ = 0;
};

class Bzip2Encoder final : public ContiguousEncoder {
 public:
  explicit Bzip2Encoder(int level) : level_(level) {}

 protected:
  void EncodeBytes(Span raw, std::uint32_t /*element_nbytes*/, EncodedChunk* out) override {
    const std::size_t limit =
        std::size_t{100'000} * static_cast<std::size_t>(level_) - kBlockReserve;
    // libbz2's own bound for each block; blocks of low levels are many.
    const std::size_t most_blocks = raw.nbytes * 5 / 4 / limit + 2;
    BitAppender bits(out->buffer.Reserve(raw.nbytes + raw.nbytes / 100 + 1024 * most_blocks));
    out->check = 0;
    out->blocks = 0;
    for (std::size_t at = 0; at < raw.nbytes;) {
      const Span rest = {raw.data + at, raw.nbytes - at};
      const std::size_t n = BlockPrefix(rest, limit);
      AppendBlock({rest.data, n}, &bits, out);
      at += n;
    }
    out->nbits = bits.nbits();
    out->UseBuffer((out->nbits + 7) / 8);
  }

 private:
  void AppendBlock(Span raw, BitAppender* bits, EncodedChunk* out) {
    constexpr int kQuiet = 0;
    constexpr int kStandardWorkFactor = 0;
    auto nbytes = static_cast<unsigned>(raw.nbytes + raw.nbytes / 100 + 600);
    char* stream = reinterpret_cast<char*>(stream_.Reserve(nbytes));
    // libbz2's argument lacks the const.
    char* in = const_cast<char*>(reinterpret_cast<const char*>(raw.data));
    if (BZ2_bzBuffToBuffCompress(stream, &nbytes, in, static_cast<unsigned>(raw.nbytes), level_,
                                 kQuiet, kStandardWorkFactor) != BZ_OK) {
      throw Error(ErrorKind::kCodec, "libbz2: a block could not be compressed");
    }
    const std::uint64_t first = 8 * kHeaderNbytes;
    const std::uint64_t end = EndOfBlocks(stream_.data(), nbytes);
    bits->Append(stream_.data(), first, end - first);
    const auto crc = static_cast<std::uint32_t>(BitsAt(stream_.data(), end + kMagicBits, kCrcBits));
    out->check = Fold(out->check, 1) ^ crc;
    ++out->blocks;
  }

  int level_;
  Buffer stream_;
};

class Bzip2Joiner final : public StreamJoiner {
 public:
  std::string Begin() override { return {'B', 'Z', 'h', '0' + kHeaderLevel}; }

  void Append(EncodedChunk* chunk) override {
    crc_ = Fold(crc_, chunk->blocks) ^ chunk->check;
    chunk->shift = used_;
    chunk->carry = carry_;
    const std::uint64_t total = used_ + chunk->nbits;
    chunk->nbytes = total / 8;
    used_ = total % 8;
    // A block alone is longer than a byte, so what is left over is the chunk's.
    carry_ = used_ == 0
                 ? 0
                 : static_cast<std::uint8_t>(
                       BitsAt(chunk->buffer.data(), chunk->nbits - used_, static_cast<int>(used_))
                       << (8 - used_));
  }

  void Settle(EncodedChunk* chunk) const override {
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

  std::string End() override {
    constexpr std::size_t kTailNbytes = (kMagicBits + kCrcBits) / 8;
    std::array<std::uint8_t, kTailNbytes> tail{};
    for (std::size_t i = 0; i < 6; ++i) {
      tail[i] = static_cast<std::uint8_t>(kEndMagic >> (40 - 8 * i));
    }
    for (std::size_t i = 0; i < 4; ++i) {
      tail[6 + i] = static_cast<std::uint8_t>(crc_ >> (24 - 8 * i));
    }
    std::array<std::uint8_t, 1 + kTailNbytes> last{};
    BitAppender bits(last.data());
    bits.Append(&carry_, 0, used_);
    bits.Append(tail.data(), 0, kMagicBits + kCrcBits);
    return {reinterpret_cast<const char*>(last.data()), (bits.nbits() + 7) / 8};
  }

 private:
  std::uint32_t crc_ = 0;
  std::uint32_t used_ = 0;  // bits of the byte that the next chunk completes
  std::uint8_t carry_ = 0;  // those bits, high first
};

}  // namespace

std::unique_ptr<ChunkEncoder> Bzip2Codec::NewEncoder(int level) const {
  return std::make_unique<Bzip2Encoder>(level);
}

std::unique_ptr<StreamJoiner> Bzip2Codec::NewJoiner() const {
  return std::make_unique<Bzip2Joiner>();
}

}  // namespace pyckpt::bzip2
