#include "lzma_literals.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

namespace pyckpt::xz {
namespace {

// LZMA's constants (the LZMA specification, and doc/xz-file-format.txt for the
// LZMA2 chunks).
constexpr unsigned kProbabilityBits = 11;
constexpr std::uint16_t kEven = 1U << (kProbabilityBits - 1);
constexpr unsigned kAdaptation = 5;
constexpr std::uint32_t kRenormalizeBelow = 1U << 24;
constexpr std::size_t kTrees = 16;  // 2^(lc + lp)
constexpr std::size_t kTreeNodes = 256;

// LZMA2 chunk headers. A chunk holds at most 64 KiB of code.
constexpr std::uint8_t kEndMark = 0x00;
constexpr std::uint8_t kStoredResetDictionary = 0x01;
constexpr std::uint8_t kStored = 0x02;
constexpr std::uint8_t kCoded = 0x80;
constexpr std::uint8_t kCodedResetState = 0xA0;
constexpr std::uint8_t kCodedNewProperties = 0xC0;
constexpr std::uint8_t kCodedResetDictionary = 0xE0;
constexpr std::size_t kStoredHeaderNbytes = 3;
constexpr std::size_t kCodedHeaderNbytes = 5;

// Raw bytes of an LZMA2 chunk: with what coding may add to noise, the code
// still fits its 64 KiB, and the element's phase stays.
constexpr std::size_t kChunkRaw = 60 * 1024;
// A decision costs at most log2(2048 / 31) bits, and a byte takes nine.
constexpr std::size_t kChunkCodeBound = kChunkRaw * 7 + 64;

void StoreBe64(std::uint8_t* out, std::uint64_t word) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  std::memcpy(out, &word, sizeof word);
}

// LZMA's range coder with the carry resolved late: the last eight bytes of the
// code are kept in a register, where an addition carries by itself.
class RangeCoder {
 public:
  // Needs eight writable bytes in front of out. The first byte of a code is 0.
  void Start(std::uint8_t* out) {
    *out = 0;
    low_ = 0;
    range_ = 0xFFFFFFFF;
    count_ = 0;
    last_ = 0;
    out_ = out + 1;
  }

  // probability is that of a 0, in 2048ths. At most three calls until Flush.
  [[gnu::always_inline]] void Encode(std::uint32_t probability, std::uint32_t bit) {
    const std::uint32_t bound = (range_ >> kProbabilityBits) * probability;
    low_ += bound & (0U - bit);
    range_ = bit != 0 ? range_ - bound : bound;
    const unsigned shift = static_cast<unsigned>(range_ < kRenormalizeBelow) << 3;
    range_ <<= shift;
    low_ <<= shift;
    count_ += shift;
  }

  [[gnu::always_inline]] void Flush() {
    const std::uint64_t shifted = last_ << count_;
    last_ = shifted + (low_ >> 32);
    low_ &= 0xFFFFFFFF;
    out_ += count_ >> 3;
    count_ = 0;
    StoreBe64(out_ - 8, last_);
    if (__builtin_expect(static_cast<long>(last_ < shifted), 0) != 0) Carry(out_ - 8);
  }

  // Returns the end of the code.
  std::uint8_t* Finish() {
    StoreBe64(out_, low_ << 32);
    return out_ + 4;
  }

 private:
  // Adds one to the number that ends in front of end.
  [[gnu::noinline]] static void Carry(std::uint8_t* end) {
    while (++*--end == 0) {
    }
  }

  std::uint64_t low_ = 0;
  std::uint64_t last_ = 0;
  std::uint8_t* out_ = nullptr;
  std::uint32_t range_ = 0;
  unsigned count_ = 0;  // bits that low_ has been shifted by
};

// The adaptive state between two resets.
struct Model {
  std::array<std::array<std::uint16_t, kTreeNodes>, kTrees> trees;
  std::uint32_t is_literal;

  void Reset() {
    for (auto& tree : trees) tree.fill(kEven);
    is_literal = kEven;
  }
};

// Encodes one byte: the decision "no match", then eight down the tree.
[[gnu::always_inline]] inline void EncodeByte(std::uint32_t byte, std::uint16_t* tree,
                                              std::uint32_t* is_literal, RangeCoder* coder) {
  coder->Encode(*is_literal, 0);
  *is_literal += ((1U << kProbabilityBits) - *is_literal) >> kAdaptation;
  const std::uint32_t path = byte | 0x100;
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) {
    std::uint16_t* node = tree + (path >> (i + 1));
    const std::uint32_t bit = byte >> i & 1;
    const int probability = *node;
    coder->Encode(static_cast<std::uint32_t>(probability), bit);
    // Towards 2048 after a 0 and towards 0 after a 1, rounded as LZMA does.
    const int target =
        ((1 << kProbabilityBits) - (1 << kAdaptation) + 1) & (static_cast<int>(bit) - 1);
    *node = static_cast<std::uint16_t>(probability - ((probability - target) >> kAdaptation));
    if (i == 6 || i == 3 || i == 0) coder->Flush();
  }
}

// Codes nbytes of raw, which previous precedes, and returns the end of the code.
// raw starts at a multiple of the position's period.
std::uint8_t* EncodeChunk(const std::uint8_t* raw, std::size_t nbytes, std::uint32_t previous,
                          LiteralBits bits, Model* model, std::uint8_t* code) {
  const std::size_t position_mask = (std::size_t{1} << bits.position) - 1;
  const unsigned context_shift = 8 - bits.context;
  std::uint32_t is_literal = model->is_literal;
  RangeCoder coder;
  coder.Start(code);
  for (std::size_t i = 0; i < nbytes; ++i) {
    const std::size_t tree = (i & position_mask) << bits.context | previous >> context_shift;
    previous = raw[i];
    EncodeByte(previous, model->trees[tree].data(), &is_literal, &coder);
  }
  model->is_literal = is_literal;
  return coder.Finish();
}

void Put(std::uint8_t** out, std::size_t value) { *(*out)++ = static_cast<std::uint8_t>(value); }

void PutBe16(std::uint8_t** out, std::size_t value) {
  Put(out, value >> 8);
  Put(out, value);
}

}  // namespace

LiteralBits ChooseLiteralBits(std::uint32_t element_nbytes) {
  return element_nbytes == 8 ? LiteralBits{1, 3} : LiteralBits{2, 2};
}

std::size_t Lzma2LiteralsBound(std::size_t raw_nbytes) {
  // Stored chunks are the longest that there are.
  const std::size_t chunks = raw_nbytes / kChunkRaw + 1;
  return raw_nbytes + chunks * kStoredHeaderNbytes + 1;
}

std::uint8_t* WriteLzma2Literals(Span raw, LiteralBits bits, std::uint8_t* out) {
  constexpr std::size_t kInFront = 8;
  const auto buffer = std::make_unique<std::uint8_t[]>(kInFront + kChunkCodeBound);
  std::uint8_t* code = buffer.get() + kInFront;
  const auto model = std::make_unique<Model>();
  model->Reset();
  std::uint8_t reset = kCodedResetDictionary;
  for (std::size_t at = 0; at < raw.nbytes; at += kChunkRaw) {
    const std::uint8_t* chunk = raw.data + at;
    const std::size_t nbytes = std::min(kChunkRaw, raw.nbytes - at);
    const std::uint32_t previous = at == 0 ? 0 : chunk[-1];
    const auto code_nbytes = static_cast<std::size_t>(
        EncodeChunk(chunk, nbytes, previous, bits, model.get(), code) - code);
    const bool first_coded = reset >= kCodedNewProperties;
    if (code_nbytes + kCodedHeaderNbytes < nbytes + kStoredHeaderNbytes) {
      Put(&out, reset);
      PutBe16(&out, nbytes - 1);
      PutBe16(&out, code_nbytes - 1);
      if (first_coded) Put(&out, bits.position * 9 + bits.context);
      out = std::copy_n(code, code_nbytes, out);
      reset = kCoded;
    } else {
      Put(&out, at == 0 ? kStoredResetDictionary : kStored);
      PutBe16(&out, nbytes - 1);
      out = std::copy_n(chunk, nbytes, out);
      // The decoder has not seen what the model has learnt here.
      model->Reset();
      reset = first_coded ? kCodedNewProperties : kCodedResetState;
    }
  }
  Put(&out, kEndMark);
  return out;
}

}  // namespace pyckpt::xz
