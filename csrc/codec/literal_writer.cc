#include "codec/literal_writer.h"

#include <algorithm>

#include "base/cpu.h"

namespace pyckpt {
namespace {

constexpr std::size_t kSymbols = 256;
constexpr unsigned kLengthBits = 8;
constexpr std::uint32_t kLengthMask = (1U << kLengthBits) - 1;

using SingleTable = std::array<std::uint32_t, kSymbols>;

// An entry of a table has its code's length in the low kLengthBits bits and the code above. The low
// bits of a sum of entries are the sum of the lengths.
[[gnu::always_inline]] inline std::uint64_t TwoCodes(std::uint64_t a, std::uint64_t b) {
  return a >> kLengthBits | b >> kLengthBits << (a & BitWriter::kShiftMask);
}

[[gnu::always_inline]] inline std::size_t Load16(const std::uint8_t* p) {
  return std::size_t{p[0]} | std::size_t{p[1]} << 8;
}

// The ways through the literals. At(raw, i) is the byte that is written i-th, PairAt(raw, i) the
// index of the pair that is written as i-th and (i+1)-th byte. FillPairsLoop makes the table of
// pairs. Its shifts are multiplications, because CPUs with AVX2 multiply eight entries at once, but
// are slow to shift them by eight different amounts.
struct Forward {
  static std::uint8_t At(Span raw, std::size_t i) { return raw.data[i]; }
  static std::size_t PairAt(Span raw, std::size_t i) { return Load16(raw.data + i); }

  // The upper byte's code is shifted up by the length of the lower byte's code.
  [[gnu::always_inline]] static void FillPairsLoop(const SingleTable& table, std::uint32_t* pairs) {
    // A copy, so that the compiler knows that pairs does not overlap it.
    const SingleTable singles = table;
    SingleTable powers{};
    for (std::size_t a = 0; a < kSymbols; ++a) powers[a] = 1U << (singles[a] & kLengthMask);
    for (std::size_t b = 0; b < kSymbols; ++b) {
      const std::uint32_t b_length = singles[b] & kLengthMask;
      const std::uint32_t b_code = singles[b] & ~kLengthMask;
      std::uint32_t* row = pairs + (b << 8);
      for (std::size_t a = 0; a < kSymbols; ++a) {
        // The low bits of the sum are a's length plus b's length.
        row[a] = singles[a] + b_length + b_code * powers[a];
      }
    }
  }
};

struct Backward {
  static std::uint8_t At(Span raw, std::size_t i) { return raw.data[raw.nbytes - 1 - i]; }
  static std::size_t PairAt(Span raw, std::size_t i) {
    return Load16(raw.data + raw.nbytes - 2 - i);
  }

  // The lower byte's code is shifted up by the length of the upper byte's code.
  [[gnu::always_inline]] static void FillPairsLoop(const SingleTable& table, std::uint32_t* pairs) {
    const SingleTable singles = table;
    for (std::size_t a = 0; a < kSymbols; ++a) {
      const std::uint32_t power = 1U << (singles[a] & kLengthMask);
      std::uint32_t* row = pairs + (a << 8);
      for (std::size_t b = 0; b < kSymbols; ++b) {
        const std::uint32_t b_length = singles[b] & kLengthMask;
        row[b] = singles[a] + b_length + (singles[b] - b_length) * power;
      }
    }
  }
};

struct Portable {
  static std::uint64_t NbytesIn(std::uint64_t nbits) { return nbits >> 3 & 31; }
};

#if defined(__x86_64__)
struct Bmi {
  // One instruction. Its intrinsic can be called only from functions that are compiled for BMI, and
  // those cannot be inlined into a loop that all CPUs share.
  static std::uint64_t NbytesIn(std::uint64_t nbits) {
    constexpr std::uint64_t kFiveBitsFromThird = 5 << 8 | 3;
    std::uint64_t nbytes = 0;
    asm("bextr %2, %1, %0" : "=r"(nbytes) : "r"(nbits), "r"(kFiveBitsFromThird) : "cc");
    return nbytes;
  }
};
#endif

// The joined codes of some pairs. Only the lowest eight bits of length are valid.
struct Codes {
  std::uint64_t bits;
  std::uint64_t length;
};

template <typename Way, std::size_t kPairs>
[[gnu::always_inline]] inline Codes LookUpPairs(Span raw, std::size_t i,
                                                const std::uint32_t* pairs) {
  const std::uint64_t a = pairs[Way::PairAt(raw, i)];
  if constexpr (kPairs == 1) {
    return {a >> kLengthBits, a};
  } else {
    const Codes rest = LookUpPairs<Way, kPairs - 1>(raw, i + 2, pairs);
    return {a >> kLengthBits | rest.bits << (a & BitWriter::kShiftMask), a + rest.length};
  }
}

// Writes two words at a time, each with the codes of kPairs pairs.
template <typename Way, typename Cpu, std::size_t kPairs>
[[gnu::always_inline]] inline std::size_t EmitPairsLoop(Span raw, const std::uint32_t* pairs,
                                                        BitWriter* writer) {
  constexpr std::size_t kRounds = 8;  // unrolled in a separate loop, which GCC compiles better
  constexpr std::size_t kWord = 2 * kPairs;
  BitWriter w = *writer;
  std::size_t at = 0;
  const auto round = [&](std::size_t from) {
    const Codes a = LookUpPairs<Way, kPairs>(raw, from, pairs);
    const Codes b = LookUpPairs<Way, kPairs>(raw, from + kWord, pairs);
    w.PutTwo<Cpu>(a.bits, a.length, b.bits, b.length);
  };
  for (; raw.nbytes - at >= kRounds * 2 * kWord; at += kRounds * 2 * kWord) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kRounds; ++i) round(at + i * 2 * kWord);
  }
  for (; raw.nbytes - at >= 2 * kWord; at += 2 * kWord) round(at);
  *writer = w;
  return at;
}

template <typename Way, typename Cpu>
[[gnu::always_inline]] inline std::size_t EmitLoop(Span raw, const std::uint32_t* table,
                                                   BitWriter* writer) {
  BitWriter w = *writer;
  std::size_t i = 0;
  const auto two = [&](std::size_t at) {
    const std::uint64_t a = table[Way::At(raw, at)];
    const std::uint64_t b = table[Way::At(raw, at + 1)];
    return TwoCodes(a, b) << kLengthBits | ((a + b) & kLengthMask);
  };
  for (; i + 8 <= raw.nbytes; i += 8) {
    const std::uint64_t a = two(i);
    const std::uint64_t b = two(i + 2);
    const std::uint64_t c = two(i + 4);
    const std::uint64_t d = two(i + 6);
    w.PutTwo<Cpu>(TwoCodes(a, b), a + b, TwoCodes(c, d), c + d);
  }
  *writer = w;
  return i;
}

// Returns how many bytes of raw it wrote. A few at the end of the way may be left.
using Emit = std::size_t (*)(Span raw, const std::uint32_t* table, BitWriter* writer);
using FillPairs = void (*)(const SingleTable& table, std::uint32_t* pairs);

struct Kernels {
  Emit singles;
  Emit pairs;
  Emit short_pairs;  // if no code is longer than kShortCode
  FillPairs fill;
};

constexpr std::size_t PairsInWord(std::size_t longest) {
  return BitWriter::kMostOfTwo / (2 * longest);
}
constexpr std::size_t kPairsInWord = PairsInWord(kLongestCode);
constexpr std::size_t kShortPairsInWord = PairsInWord(kShortCode);

template <typename Way>
constexpr Kernels kPortable = {
    [](Span raw, const std::uint32_t* table, BitWriter* w) {
      return EmitLoop<Way, Portable>(raw, table, w);
    },
    [](Span raw, const std::uint32_t* pairs, BitWriter* w) {
      return EmitPairsLoop<Way, Portable, kPairsInWord>(raw, pairs, w);
    },
    [](Span raw, const std::uint32_t* pairs, BitWriter* w) {
      return EmitPairsLoop<Way, Portable, kShortPairsInWord>(raw, pairs, w);
    },
    [](const SingleTable& table, std::uint32_t* pairs) { Way::FillPairsLoop(table, pairs); }};

#if defined(__x86_64__)
// The same loops. With BMI2 a shift by a variable amount is one instruction.
template <typename Way>
[[gnu::target("bmi2")]] std::size_t EmitBmi2(Span raw, const std::uint32_t* table, BitWriter* w) {
  return EmitLoop<Way, Bmi>(raw, table, w);
}
template <typename Way, std::size_t kPairs>
[[gnu::target("bmi2")]] std::size_t EmitPairsBmi2(Span raw, const std::uint32_t* pairs,
                                                  BitWriter* w) {
  return EmitPairsLoop<Way, Bmi, kPairs>(raw, pairs, w);
}
template <typename Way>
[[gnu::target("avx2")]] void FillPairsAvx2(const SingleTable& table, std::uint32_t* pairs) {
  Way::FillPairsLoop(table, pairs);
}
template <typename Way>
constexpr Kernels kAvx2 = {EmitBmi2<Way>, EmitPairsBmi2<Way, kPairsInWord>,
                           EmitPairsBmi2<Way, kShortPairsInWord>, FillPairsAvx2<Way>};
#endif

template <typename Way>
const Kernels& KernelsFor() {
#if defined(__x86_64__)
  if (UseBmi2() && UseAvx2()) return kAvx2<Way>;
#endif
  return kPortable<Way>;
}

const Kernels& ChooseKernels(LiteralOrder order) {
  return order == LiteralOrder::kForward ? KernelsFor<Forward>() : KernelsFor<Backward>();
}

}  // namespace

void LiteralWriter::Prepare(const std::vector<HuffmanCode>& codes, std::size_t literal_nbytes) {
  const Kernels& kernels = ChooseKernels(order_);
  for (std::size_t s = 0; s < kSymbols; ++s) {
    table_[s] = std::uint32_t{codes[s].bits} << kLengthBits | codes[s].length;
  }
  use_pairs_ = literal_nbytes >= kPairsWorthwhile;
  emit_ = kernels.singles;
  if (use_pairs_) {
    pair_table_.resize(kSymbols * kSymbols);
    kernels.fill(table_, pair_table_.data());
    const auto is_short = [](std::uint32_t entry) { return (entry & kLengthMask) <= kShortCode; };
    const bool all_short = std::all_of(table_.begin(), table_.end(), is_short);
    emit_ = all_short ? kernels.short_pairs : kernels.pairs;
  }
}

void LiteralWriter::Write(Span literals, BitWriter* writer) const {
  const std::uint32_t* table = use_pairs_ ? pair_table_.data() : table_.data();
  for (std::size_t i = emit_(literals, table, writer); i < literals.nbytes; ++i) {
    const std::uint8_t byte =
        order_ == LiteralOrder::kForward ? Forward::At(literals, i) : Backward::At(literals, i);
    writer->Put(table_[byte] >> kLengthBits, table_[byte] & kLengthMask);
  }
}

}  // namespace pyckpt
