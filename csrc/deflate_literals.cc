#include "deflate_literals.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "cpu.h"

namespace pyckpt::deflate {
namespace {

constexpr std::size_t kEndOfBlock = 256;
constexpr std::size_t kLiteralSymbols = 257;
constexpr int kLongestLengthCode = 7;  // of the code that the lengths are written in
constexpr std::size_t kStoredLimit = 65535;

// The order in which a dynamic block gives the lengths of the code-length code
// (RFC 1951, section 3.2.7).
constexpr std::array<std::size_t, 19> kLengthCodeOrder = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                          11, 4,  12, 3, 13, 2, 14, 1, 15};

// Bits fill each byte from its lowest bit up. Every write stores eight bytes,
// so the output needs that much room behind its end.
class BitWriter {
 public:
  explicit BitWriter(std::uint8_t* out) : out_(out) {}

  // length <= 57 - 7; bits above length are zero.
  void Put(std::uint64_t bits, unsigned length) {
    word_ |= bits << used_;
    used_ += length;
    Store(out_, word_);
    out_ += used_ >> 3;
    word_ >>= used_ & ~7U;
    used_ &= 7;
  }

  // Fills the last byte with zeros and returns the end.
  std::uint8_t* Align() {
    if (used_ != 0) Put(0, 8 - used_);
    return out_;
  }

  static void Store(std::uint8_t* out, std::uint64_t word) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    std::memcpy(out, &word, sizeof word);
  }

 private:
  std::uint8_t* out_;
  std::uint64_t word_ = 0;
  unsigned used_ = 0;
};

// Code and length in one word: four look-ups and three shifts a store.
using EmitTable = std::array<std::uint32_t, 256>;

[[gnu::always_inline]] inline std::size_t EmitLoop(Span raw, const EmitTable& table,
                                                   BitWriter* writer) {
  constexpr unsigned kLengthShift = 16;
  constexpr std::uint32_t kBits = (1U << kLengthShift) - 1;
  BitWriter w = *writer;
  std::size_t i = 0;
  for (; i + 4 <= raw.nbytes; i += 4) {
    const std::uint32_t a = table[raw.data[i]];
    const std::uint32_t b = table[raw.data[i + 1]];
    const std::uint32_t c = table[raw.data[i + 2]];
    const std::uint32_t d = table[raw.data[i + 3]];
    const unsigned a_length = a >> kLengthShift;
    const unsigned c_length = c >> kLengthShift;
    const unsigned ab_length = a_length + (b >> kLengthShift);
    const std::uint64_t ab = (a & kBits) | std::uint64_t{b & kBits} << a_length;
    const std::uint64_t cd = (c & kBits) | std::uint64_t{d & kBits} << c_length;
    w.Put(ab | cd << ab_length, ab_length + c_length + (d >> kLengthShift));
  }
  *writer = w;
  return i;
}

std::size_t EmitPortable(Span raw, const EmitTable& table, BitWriter* writer) {
  return EmitLoop(raw, table, writer);
}

#if defined(__x86_64__)
// The same loop: shifts by a variable amount are one instruction with BMI2.
[[gnu::target("bmi2")]] std::size_t EmitBmi2(Span raw, const EmitTable& table, BitWriter* writer) {
  return EmitLoop(raw, table, writer);
}
#endif

using EmitFunction = std::size_t (*)(Span, const EmitTable&, BitWriter*);

EmitFunction ChooseEmit() {
#if defined(__x86_64__)
  if (UseBmi2()) return EmitBmi2;
#endif
  return EmitPortable;
}

void WriteHeader(const std::vector<HuffmanCode>& codes, BitWriter* w) {
  w->Put(0, 1);  // not the last block
  w->Put(2, 2);  // dynamic code
  w->Put(kLiteralSymbols - 257, 5);
  w->Put(0, 5);  // one distance code, of length 0: there are no matches

  std::vector<std::uint64_t> counts(kLengthCodeOrder.size());
  for (const HuffmanCode& c : codes) ++counts[c.length];
  ++counts[0];
  const std::vector<HuffmanCode> lengths = BuildHuffman(counts, kLongestLengthCode);
  w->Put(kLengthCodeOrder.size() - 4, 4);
  for (const std::size_t s : kLengthCodeOrder) w->Put(lengths[s].length, 3);
  for (const HuffmanCode& c : codes) w->Put(lengths[c.length].bits, lengths[c.length].length);
  w->Put(lengths[0].bits, lengths[0].length);
}

}  // namespace

LiteralCode::LiteralCode(const Histogram& sample) {
  std::vector<std::uint64_t> frequencies(sample.begin(), sample.end());
  std::uint64_t total = 0;
  for (std::uint64_t& f : frequencies) {
    total += f;
    f = std::max<std::uint64_t>(f, 1);
  }
  frequencies.push_back(1);
  codes_ = BuildHuffman(frequencies, kLongestLiteral);
  if (total == 0) return;
  std::uint64_t bits = 0;
  for (std::size_t s = 0; s < sample.size(); ++s) {
    bits += std::uint64_t{sample[s]} * codes_[s].length;
  }
  mean_bits_ = static_cast<double>(bits) / static_cast<double>(total);
}

std::uint64_t LiteralCode::EstimateNbytes(std::size_t raw_nbytes) const {
  return static_cast<std::uint64_t>(mean_bits_ * static_cast<double>(raw_nbytes) / 8) +
         kLiteralSymbols / 2;
}

std::size_t LiteralBlockBound(std::size_t raw_nbytes) {
  constexpr std::size_t kHeaderNbytes = 512;
  return raw_nbytes * kLongestLiteral / 8 + kHeaderNbytes;
}

std::uint8_t* WriteLiteralBlock(Span raw, const LiteralCode& code, std::uint8_t* out) {
  static const EmitFunction kEmit = ChooseEmit();
  const std::vector<HuffmanCode>& codes = code.codes();
  BitWriter w(out);
  WriteHeader(codes, &w);
  EmitTable table{};
  for (std::size_t s = 0; s < table.size(); ++s) {
    table[s] = codes[s].bits | static_cast<std::uint32_t>(codes[s].length) << 16;
  }
  for (std::size_t i = kEmit(raw, table, &w); i < raw.nbytes; ++i) {
    w.Put(codes[raw.data[i]].bits, codes[raw.data[i]].length);
  }
  w.Put(codes[kEndOfBlock].bits, codes[kEndOfBlock].length);
  w.Put(0, 3);  // a stored block, not the last: its lengths start on a byte
  std::uint8_t* end = w.Align();
  constexpr std::array<std::uint8_t, 4> kEmptyLengths = {0x00, 0x00, 0xFF, 0xFF};
  return std::copy(kEmptyLengths.begin(), kEmptyLengths.end(), end);
}

std::size_t StoredBlocksNbytes(std::size_t raw_nbytes) {
  const std::size_t blocks =
      std::max<std::size_t>(1, (raw_nbytes + kStoredLimit - 1) / kStoredLimit);
  return raw_nbytes + 5 * blocks;
}

std::uint8_t* WriteStoredBlocks(Span raw, std::uint8_t* out) {
  std::size_t at = 0;
  do {
    const std::size_t n = std::min(kStoredLimit, raw.nbytes - at);
    *out++ = 0;  // stored, not the last block
    *out++ = static_cast<std::uint8_t>(n);
    *out++ = static_cast<std::uint8_t>(n >> 8);
    *out++ = static_cast<std::uint8_t>(~n);
    *out++ = static_cast<std::uint8_t>(~n >> 8);
    if (n != 0) std::memcpy(out, raw.data + at, n);
    out += n;
    at += n;
  } while (at < raw.nbytes);
  return out;
}

}  // namespace pyckpt::deflate
