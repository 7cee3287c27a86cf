#include "codec/gzip/block.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/cpu.h"

namespace pyckpt::deflate {
namespace {

constexpr std::size_t kLiterals = 256;
constexpr std::size_t kEndOfBlock = 256;
constexpr std::size_t kLengthSymbols = 29;
constexpr std::size_t kDistanceSymbols = 30;
constexpr int kLongest = 15;            // that deflate has
constexpr int kLongestCode = 12;        // two of them and a byte for a length fit 32 bits
constexpr int kShortCode = 9;           // six of them are written at once, not four
constexpr int kLongestLengthsCode = 7;  // of the code that the lengths are written in
constexpr std::size_t kShortestMatch = 3;
constexpr std::size_t kLongestMatch = 258;
constexpr std::size_t kStoredLimit = 65535;

// The order in which a dynamic block gives the lengths of the code-length code
// (RFC 1951, section 3.2.7).
constexpr std::array<std::size_t, 19> kLengthCodeOrder = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                          11, 4,  12, 3, 13, 2, 14, 1, 15};

// The shortest match of each length symbol, from 257 on (section 3.2.5).
constexpr std::array<std::uint16_t, kLengthSymbols> kLengthBase = {
    3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
    31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};

unsigned LengthExtraBits(std::size_t symbol) {
  if (symbol < 8 || symbol == kLengthSymbols - 1) return 0;
  return static_cast<unsigned>(symbol / 4 - 1);
}

// The shortest distance of each distance symbol.
constexpr std::array<std::uint16_t, kDistanceSymbols> kDistanceBase = {
    1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
    193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};

std::size_t DistanceSymbol(std::size_t distance) {
  return static_cast<std::size_t>(
      std::upper_bound(kDistanceBase.begin(), kDistanceBase.end(), distance) -
      kDistanceBase.begin() - 1);
}

unsigned DistanceExtraBits(std::size_t symbol) {
  return symbol < 4 ? 0 : static_cast<unsigned>(symbol / 2 - 1);
}

std::size_t LengthSymbol(std::size_t nbytes) {
  return static_cast<std::size_t>(std::upper_bound(kLengthBase.begin(), kLengthBase.end(), nbytes) -
                                  kLengthBase.begin() - 1);
}

// A run as matches that deflate has lengths for.
template <typename Match>
void SplitMatch(std::size_t nbytes, Match match) {
  while (nbytes > kLongestMatch) {
    const std::size_t n =
        nbytes - kLongestMatch < kShortestMatch ? nbytes - kShortestMatch : kLongestMatch;
    match(n);
    nbytes -= n;
  }
  match(nbytes);
}

// ---- Literals -------------------------------------------------------------

constexpr unsigned kLengthBits = 8;
constexpr std::uint32_t kLengthMask = (1U << kLengthBits) - 1;

// To fill the table of pairs, and to look for short codes, takes as long as to write so many
// bytes of literals saves by it.
constexpr std::size_t kPairsWorthwhile = std::size_t{32} << 10;

// Entries hold a code above, and in the low bits its length; a sum of entries has the
// sum of their lengths there.
[[gnu::always_inline]] inline std::uint64_t TwoCodes(std::uint64_t a, std::uint64_t b) {
  return a >> kLengthBits | b >> kLengthBits << (a & BitWriter::kShiftMask);
}

[[gnu::always_inline]] inline std::size_t Load16(const std::uint8_t* p) {
  return std::size_t{p[0]} | std::size_t{p[1]} << 8;
}

struct Portable {
  static std::uint64_t NbytesIn(std::uint64_t nbits) { return nbits >> 3 & 31; }
};

#if defined(__x86_64__)
struct Bmi {
  // In one instruction. Its intrinsic may be called by functions of its own target alone,
  // and those cannot become part of a loop that is shared.
  static std::uint64_t NbytesIn(std::uint64_t nbits) {
    constexpr std::uint64_t kFiveBitsFromThird = 5 << 8 | 3;
    std::uint64_t nbytes = 0;
    asm("bextr %2, %1, %0" : "=r"(nbytes) : "r"(nbits), "r"(kFiveBitsFromThird) : "cc");
    return nbytes;
  }
};
#endif

// The code of some pairs, one after another; how long it is, in the lowest eight bits of length.
struct Codes {
  std::uint64_t bits;
  std::uint64_t length;
};

template <std::size_t kPairs>
[[gnu::always_inline]] inline Codes LookUpPairs(const std::uint8_t* raw,
                                                const std::uint32_t* pairs) {
  const std::uint64_t a = pairs[Load16(raw)];
  if constexpr (kPairs == 1) {
    return {a >> kLengthBits, a};
  } else {
    const Codes rest = LookUpPairs<kPairs - 1>(raw + 2, pairs);
    return {a >> kLengthBits | rest.bits << (a & BitWriter::kShiftMask), a + rest.length};
  }
}

// Two words at once, each with the codes of so many pairs.
template <typename Cpu, std::size_t kPairs>
[[gnu::always_inline]] inline std::size_t EmitPairsLoop(Span raw, const std::uint32_t* pairs,
                                                        BitWriter* writer) {
  constexpr std::size_t kRounds = 8;  // in a loop of their own, or GCC does worse
  constexpr std::size_t kWord = 2 * kPairs;
  BitWriter w = *writer;
  const std::uint8_t* at = raw.data;
  const std::uint8_t* end = raw.data + raw.nbytes;
  const auto round = [&](const std::uint8_t* from) {
    const Codes a = LookUpPairs<kPairs>(from, pairs);
    const Codes b = LookUpPairs<kPairs>(from + kWord, pairs);
    w.PutTwo<Cpu>(a.bits, a.length, b.bits, b.length);
  };
  for (; static_cast<std::size_t>(end - at) >= kRounds * 2 * kWord; at += kRounds * 2 * kWord) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kRounds; ++i) round(at + i * 2 * kWord);
  }
  for (; static_cast<std::size_t>(end - at) >= 2 * kWord; at += 2 * kWord) round(at);
  *writer = w;
  return static_cast<std::size_t>(at - raw.data);
}

template <typename Cpu>
[[gnu::always_inline]] inline std::size_t EmitLoop(Span raw, const std::uint32_t* table,
                                                   BitWriter* writer) {
  BitWriter w = *writer;
  std::size_t i = 0;
  const auto two = [&](std::size_t at) {
    const std::uint64_t a = table[raw.data[at]];
    const std::uint64_t b = table[raw.data[at + 1]];
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

// What b adds to an entry depends on how long a's code is: that far its own moves up. As a
// product, since CPUs with AVX2 multiply eight at once but are slow to shift by eight amounts.
[[gnu::always_inline]] inline void FillPairsLoop(const std::array<std::uint32_t, kLiterals>& table,
                                                 std::uint32_t* pairs) {
  // Copies, which the pairs cannot overlap.
  const std::array<std::uint32_t, kLiterals> singles = table;
  std::array<std::uint32_t, kLiterals> powers{};
  for (std::size_t a = 0; a < kLiterals; ++a) powers[a] = 1U << (singles[a] & kLengthMask);
  for (std::size_t b = 0; b < kLiterals; ++b) {
    const std::uint32_t b_length = singles[b] & kLengthMask;
    const std::uint32_t b_code = singles[b] & ~kLengthMask;
    std::uint32_t* row = pairs + (b << 8);
    for (std::size_t a = 0; a < kLiterals; ++a) {
      // a's length stays in the low bits, where b's is added.
      row[a] = singles[a] + b_length + b_code * powers[a];
    }
  }
}

// Returns how many bytes it wrote: a few at the end are left.
using Emit = std::size_t (*)(Span raw, const std::uint32_t* table, BitWriter* writer);
using FillPairs = void (*)(const std::array<std::uint32_t, kLiterals>& table, std::uint32_t* pairs);

struct Kernels {
  Emit singles;
  Emit pairs;
  Emit short_pairs;  // of codes that are no longer than kShortCode
  FillPairs fill;
};

constexpr std::size_t PairsInWord(std::size_t longest) {
  return BitWriter::kMostOfTwo / (2 * longest);
}
constexpr std::size_t kPairsInWord = PairsInWord(kLongestCode);
constexpr std::size_t kShortPairsInWord = PairsInWord(kShortCode);

constexpr Kernels kPortable = {[](Span raw, const std::uint32_t* table, BitWriter* w) {
                                 return EmitLoop<Portable>(raw, table, w);
                               },
                               [](Span raw, const std::uint32_t* pairs, BitWriter* w) {
                                 return EmitPairsLoop<Portable, kPairsInWord>(raw, pairs, w);
                               },
                               [](Span raw, const std::uint32_t* pairs, BitWriter* w) {
                                 return EmitPairsLoop<Portable, kShortPairsInWord>(raw, pairs, w);
                               },
                               [](const std::array<std::uint32_t, kLiterals>& table,
                                  std::uint32_t* pairs) { FillPairsLoop(table, pairs); }};

#if defined(__x86_64__)
// The same loops: shifts by a variable amount are one instruction with BMI2.
[[gnu::target("bmi2")]] std::size_t EmitBmi2(Span raw, const std::uint32_t* table, BitWriter* w) {
  return EmitLoop<Bmi>(raw, table, w);
}
template <std::size_t kPairs>
[[gnu::target("bmi2")]] std::size_t EmitPairsBmi2(Span raw, const std::uint32_t* pairs,
                                                  BitWriter* w) {
  return EmitPairsLoop<Bmi, kPairs>(raw, pairs, w);
}
[[gnu::target("avx2")]] void FillPairsAvx2(const std::array<std::uint32_t, kLiterals>& table,
                                           std::uint32_t* pairs) {
  FillPairsLoop(table, pairs);
}
constexpr Kernels kAvx2 = {EmitBmi2, EmitPairsBmi2<kPairsInWord>, EmitPairsBmi2<kShortPairsInWord>,
                           FillPairsAvx2};
#endif

const Kernels& ChooseKernels() {
#if defined(__x86_64__)
  if (UseBmi2() && UseAvx2()) return kAvx2;
#endif
  return kPortable;
}

// ---- Codes ----------------------------------------------------------------

std::uint64_t Cost(const std::vector<std::uint64_t>& frequencies,
                   const std::vector<std::uint8_t>& lengths) {
  return std::inner_product(frequencies.begin(), frequencies.end(), lengths.begin(),
                            std::uint64_t{0});
}

// The lengths of the codes of literals, end of block and matches. If nearly all are literals,
// they alone make the tree, with one leaf for all others: then a limit binds only what is
// written in the loop that needs it. The limit mostly costs next to nothing, and the leaf less than
// two bits for each of the others.
std::vector<std::uint8_t> LiteralLengths(const std::vector<std::uint64_t>& frequencies) {
  constexpr std::uint64_t kRare = 1024;
  constexpr std::uint64_t kNextToNothing = 2048;
  const auto rest = frequencies.begin() + kLiterals;
  std::vector<std::uint64_t> tops(frequencies.begin(), rest);
  const std::uint64_t literals = std::accumulate(tops.begin(), tops.end(), std::uint64_t{0});
  tops.push_back(std::accumulate(rest, frequencies.end(), std::uint64_t{0}));
  if (literals < kPairsWorthwhile || tops.back() > literals / kRare) {
    return HuffmanTree(frequencies).Lengths(kLongestCode);
  }
  const HuffmanTree tree(tops);
  std::vector<std::uint8_t> lengths = tree.Lengths(kShortCode);
  const std::uint64_t least = Cost(tops, tree.Lengths(kLongestCode));
  if (Cost(tops, lengths) > least + least / kNextToNothing) {
    return HuffmanTree(frequencies).Lengths(kLongestCode);
  }
  const int stem = lengths.back();
  lengths.pop_back();
  const std::vector<std::uint64_t> others(rest, frequencies.end());
  if (tops.back() == others.front()) {  // no matches: the leaf is the end of block
    lengths.push_back(static_cast<std::uint8_t>(stem));
  } else {
    for (const std::uint8_t twig : HuffmanTree(others).Lengths(kLongest - stem)) {
      lengths.push_back(static_cast<std::uint8_t>(twig == 0 ? 0 : stem + twig));
    }
  }
  lengths.resize(frequencies.size());
  return lengths;
}

}  // namespace

// ---- Block ----------------------------------------------------------------

BlockCode::BlockCode(const BlockPlan& plan, const std::vector<Repeat>& repeats, std::size_t next) {
  std::vector<std::uint64_t> match_lengths(kLengthSymbols);
  std::vector<std::uint64_t> distances(kDistanceSymbols);
  SplitAtRepeats(
      plan.begin, plan.end, repeats, &next, kShortestMatch, [](std::size_t, std::size_t) {},
      [&](std::size_t from, std::size_t to, std::size_t distance) {
        SplitMatch(to - from, [&](std::size_t nbytes) {
          ++match_lengths[LengthSymbol(nbytes)];
          ++distances[DistanceSymbol(distance)];
        });
      });
  while (distances.size() > 1 && distances.back() == 0) distances.pop_back();
  const bool has_matches = distances.back() != 0;
  // Lengths are counted, literals sampled: bring both to one scale.
  const double scale = plan.sample_nbytes == 0 ? 0
                                               : static_cast<double>(plan.literal_nbytes) /
                                                     static_cast<double>(plan.sample_nbytes);
  std::vector<std::uint64_t> frequencies(kEndOfBlock + 1);
  for (std::size_t s = 0; s < kLiterals; ++s) {
    frequencies[s] = static_cast<std::uint64_t>(plan.sample[s] * scale);
  }
  frequencies[kEndOfBlock] = 1;
  if (has_matches) {
    frequencies.insert(frequencies.end(), match_lengths.begin(), match_lengths.end());
  }
  // A symbol that the sample missed may come, but is not reckoned with.
  std::vector<std::uint64_t> possible = frequencies;
  for (std::size_t s = 0; s < kLiterals; ++s) {
    possible[s] = std::max<std::uint64_t>(possible[s], plan.literal_nbytes != 0);
  }
  literals_ = CanonicalCodes(LiteralLengths(possible));
  distances_ = CanonicalCodes(HuffmanTree(distances).Lengths(kLongestCode));

  std::vector<std::uint8_t> code_lengths;
  for (const auto* codes : {&literals_, &distances_}) {
    for (const HuffmanCode& c : *codes) code_lengths.push_back(static_cast<std::uint8_t>(c.length));
  }
  length_runs_ = RunsOf(code_lengths);
  std::vector<std::uint64_t> counts(kLengthCodeOrder.size());
  for (const LengthRun& run : length_runs_) ++counts[run.symbol];
  lengths_ = CanonicalCodes(HuffmanTree(counts).Lengths(kLongestLengthsCode));

  nbits_ = 3 + 5 + 5 + 4 + 3 * kLengthCodeOrder.size();
  for (const LengthRun& run : length_runs_) {
    nbits_ += std::uint64_t{lengths_[run.symbol].length} + run.extra_nbits;
  }
  for (std::size_t s = 0; s < frequencies.size(); ++s) {
    nbits_ += frequencies[s] * literals_[s].length;
  }
  for (std::size_t s = 0; s < kLengthSymbols; ++s) {
    nbits_ += match_lengths[s] * LengthExtraBits(s);
  }
  for (std::size_t s = 0; s < distances.size(); ++s) {
    nbits_ += distances[s] * (distances_[s].length + DistanceExtraBits(s));
  }
}

// Symbol 16 repeats the length before it; 17 and 18 are runs of zeros (section 3.2.7).
std::vector<BlockCode::LengthRun> BlockCode::RunsOf(const std::vector<std::uint8_t>& lengths) {
  std::vector<LengthRun> runs;
  for (auto at = lengths.begin(); at != lengths.end();) {
    const std::uint8_t length = *at;
    const auto end = std::find_if(at, lengths.end(), [=](std::uint8_t l) { return l != length; });
    auto left = static_cast<std::size_t>(end - at);
    at = end;
    const auto take = [&](std::uint8_t symbol, std::size_t fewest, std::size_t most,
                          std::uint8_t extra_nbits) {
      while (left >= fewest) {
        const std::size_t n = std::min(left, most);
        runs.push_back({symbol, static_cast<std::uint8_t>(n - fewest), extra_nbits});
        left -= n;
      }
    };
    if (length == 0) {
      take(18, 11, 138, 7);
      take(17, 3, 10, 3);
    } else {
      runs.push_back({length, 0, 0});
      --left;
      take(16, 3, 6, 2);
    }
    for (; left > 0; --left) runs.push_back({length, 0, 0});
  }
  return runs;
}

void BlockCode::WriteHeader(BitWriter* writer) const {
  writer->Put(0, 1);  // not the last block
  writer->Put(2, 2);  // dynamic code
  writer->Put(literals_.size() - 257, 5);
  writer->Put(distances_.size() - 1, 5);
  writer->Put(kLengthCodeOrder.size() - 4, 4);
  for (const std::size_t s : kLengthCodeOrder) writer->Put(lengths_[s].length, 3);
  for (const LengthRun& run : length_runs_) {
    writer->Put(lengths_[run.symbol].bits, lengths_[run.symbol].length);
    writer->Put(run.extra, run.extra_nbits);
  }
}

void BlockCode::PutMatch(std::size_t nbytes, std::size_t distance, BitWriter* writer) const {
  const std::size_t l = LengthSymbol(nbytes);
  writer->Put(literals_[257 + l].bits, literals_[257 + l].length);
  writer->Put(nbytes - kLengthBase[l], LengthExtraBits(l));
  const std::size_t d = DistanceSymbol(distance);
  writer->Put(distances_[d].bits, distances_[d].length);
  writer->Put(distance - kDistanceBase[d], DistanceExtraBits(d));
}

void BlockCode::PutEnd(BitWriter* writer) const {
  writer->Put(literals_[kEndOfBlock].bits, literals_[kEndOfBlock].length);
}

std::size_t DynamicBlocksBound(std::size_t raw_nbytes, std::size_t blocks) {
  constexpr std::size_t kHeaderNbytes = 512;
  return raw_nbytes * kLongestCode / 8 + (blocks + 1) * kHeaderNbytes;
}

void BlockWriter::Write(const std::vector<Run>& runs, const BlockPlan& plan, const BlockCode& code,
                        const std::vector<Repeat>& repeats, std::size_t* next, BitWriter* writer) {
  static const Kernels& kKernels = ChooseKernels();
  code.WriteHeader(writer);
  for (std::size_t s = 0; s < kLiterals; ++s) {
    table_[s] = std::uint32_t{code.literal(s).bits} << kLengthBits | code.literal(s).length;
  }
  const bool use_pairs = plan.literal_nbytes >= kPairsWorthwhile;
  Emit emit = kKernels.singles;
  if (use_pairs) {
    pair_table_.resize(kLiterals * kLiterals);
    kKernels.fill(table_, pair_table_.data());
    const auto is_short = [](std::uint32_t entry) { return (entry & kLengthMask) <= kShortCode; };
    const bool all_short = std::all_of(table_.begin(), table_.end(), is_short);
    emit = all_short ? kKernels.short_pairs : kKernels.pairs;
  }
  const std::uint32_t* table = use_pairs ? pair_table_.data() : table_.data();
  SplitAtRepeats(
      plan.begin, plan.end, repeats, next, kShortestMatch,
      [&](std::size_t from, std::size_t to) {
        ForEachPart(runs, from, to, [&](Span literals) {
          for (std::size_t i = emit(literals, table, writer); i < literals.nbytes; ++i) {
            const std::uint64_t c = table_[literals.data[i]];
            writer->Put(c >> kLengthBits, c & kLengthMask);
          }
        });
      },
      [&](std::size_t from, std::size_t to, std::size_t distance) {
        SplitMatch(to - from, [&](std::size_t n) { code.PutMatch(n, distance, writer); });
      });
  code.PutEnd(writer);
}

std::uint8_t* WriteEmptyBlock(BitWriter* writer) {
  writer->Put(0, 3);  // stored, not the last
  writer->Align();
  writer->Put(0xFFFF0000, 32);  // its length, 0, and that inverted
  return writer->Align();
}

std::size_t StoredBlocksBound(std::size_t raw_nbytes, std::size_t runs) {
  return raw_nbytes + 5 * (raw_nbytes / kStoredLimit + runs) + 1;
}

std::uint8_t* WriteStoredBlocks(Span raw, BitWriter* writer) {
  std::size_t at = 0;
  do {
    const std::size_t n = std::min(kStoredLimit, raw.nbytes - at);
    writer->Put(0, 3);  // stored, not the last
    writer->Align();
    writer->Put(n | (~n & 0xFFFF) << 16, 32);
    std::uint8_t* out = writer->Align();
    if (n != 0) std::memcpy(out, raw.data + at, n);
    *writer = BitWriter(out + n);
    at += n;
  } while (at < raw.nbytes);
  return writer->Align();
}

}  // namespace pyckpt::deflate
