#include "codec/plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "codec/probe.h"

namespace pyckpt {
namespace {

constexpr std::size_t kStretchNbytes = std::size_t{16} << 10;
constexpr std::size_t kProbeNbytes = 512;

// In bits per byte. Bytes with more entropy are neither text nor integers. They have only long
// repeats, and those are known already.
constexpr float kNoiseBits = 7;

// Only some slices are counted, because all parts of a tensor look alike. Of sixteen slices in a
// row, the first few in this order are counted. For any number of them, they are far apart.
constexpr std::size_t kSliceNbytes = 256;
constexpr std::array<unsigned, 16> kSliceOrder = {0, 8, 4, 12, 2, 10, 6, 14,
                                                  1, 9, 5, 13, 3, 11, 7, 15};
constexpr std::size_t kSlicesCounted = 4;

// A code is made from at least this many bytes, or from all bytes of a shorter block.
constexpr std::size_t kSampleNbytes = std::size_t{16} << 10;

// In mantissas, bytes of neighbouring values are about equally frequent. If the counts of this many
// values in a row differ by no more than chance explains, their mean is a better estimate than each
// count.
constexpr std::size_t kNeighbours = 16;
// How far a count may be above the smallest of them, in standard deviations. The smallest is about
// 1.8 below the mean.
constexpr float kChance = 5;

// Coded literals must save at least one part in this many, or the bytes are stored.
constexpr std::size_t kWorthwhile = 500;

// How much a separate block must save, in bits of the sample. A sample's own code looks better than
// it is, by about half a symbol's worth of bits for each symbol: 255 / (2 ln 2) = 184. The rest is
// for the block's header.
constexpr float kFlatteryBits = 184;
constexpr float kSplitBits = kFlatteryBits + 96;

// Each block also costs time, and most blocks save little. The samples of coarse blocks are half as
// large, and a block must save almost four times as much.
constexpr float kCoarseSplitBits = kFlatteryBits + 175;

// Most stretches are so similar to the block before them that half of the sample is enough to see
// it. In half of the sample a difference counts half as much; the other factor of a half allows for
// chance.
constexpr float kAtAGlance = 0.25F;

// Four counts at once, because the compiler does not vectorise loops over histograms.
using Lanes = float __attribute__((vector_size(16)));
using LaneCounts = std::int32_t __attribute__((vector_size(16)));
constexpr std::size_t kLanes = sizeof(Lanes) / sizeof(float);

LaneCounts LoadCounts(const Histogram& histogram, std::size_t at) {
  LaneCounts counts{};
  std::memcpy(&counts, &histogram[at], sizeof counts);
  return counts;
}

Lanes ToFloats(LaneCounts counts) { return __builtin_convertvector(counts, Lanes); }

// At least one, so that the logarithm and the division are defined.
Lanes AtLeastOne(LaneCounts counts) { return ToFloats(counts - (counts == 0)); }

float Sum(Lanes lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); }

// log2(x) for x >= 1, with an error below 0.0012: the exponent plus a cubic of the mantissa that
// equals log2 at 1, 4/3, 5/3 and 2.
Lanes Log2(Lanes x) {
  constexpr std::int32_t kMantissa = (1 << 23) - 1;
  constexpr std::int32_t kOne = 127 << 23;  // 1.0F
  LaneCounts bits{};
  std::memcpy(&bits, &x, sizeof bits);
  const Lanes exponent = ToFloats((bits >> 23) - 127);
  bits = (bits & kMantissa) | kOne;
  Lanes m{};
  std::memcpy(&m, &bits, sizeof m);
  m -= 1;
  return exponent + m * (1.41899F + m * (-0.57296F + m * 0.15397F));
}

// The size of the block's sample in a perfect code made for this sample, in bits.
float EntropyBits(const BlockPlan& block) {
  Lanes sum{};
  for (std::size_t s = 0; s < block.sample.size(); s += kLanes) {
    const LaneCounts counts = LoadCounts(block.sample, s);
    sum += ToFloats(counts) * Log2(AtLeastOne(counts));
  }
  const auto n = static_cast<float>(block.sample_nbytes);
  return n * Log2(Lanes{n < 1 ? 1 : n})[0] - Sum(sum);
}

// The slices kSliceOrder[first] to kSliceOrder[last - 1], as a mask with one bit for each of
// sixteen slices.
std::uint32_t Slices(std::size_t first, std::size_t last) {
  std::uint32_t slices = 0;
  for (std::size_t i = first; i < last; ++i) slices |= 1U << kSliceOrder[i];
  return slices;
}

// Counts bytes outside repeats. It has two tables, so that two equal neighbours do not wait for the
// same counter.
class Counter {
 public:
  void Add(Span literals, std::uint32_t slices) {
    for (std::size_t at = 0; at < literals.nbytes; at += kSliceNbytes) {
      if ((slices >> (at / kSliceNbytes % kSliceOrder.size()) & 1) == 0) continue;
      const std::size_t end = std::min(literals.nbytes, at + kSliceNbytes);
      nbytes_ += end - at;
      std::size_t i = at;
      for (; i + 8 <= end; i += 8) {
        const std::uint64_t x = LoadLe64(literals.data + i);
        for (std::size_t k = 0; k < 8; ++k) ++counts_[k % counts_.size()][x >> (8 * k) & 0xFF];
      }
      for (; i < end; ++i) ++counts_[0][literals.data[i]];
    }
  }

  void AddTo(BlockPlan* block) const {
    block->sample_nbytes += nbytes_;
    for (std::size_t s = 0; s < block->sample.size(); ++s) {
      block->sample[s] += counts_[0][s] + counts_[1][s];
    }
  }

 private:
  std::array<Histogram, 2> counts_{};
  std::size_t nbytes_ = 0;
};

// How many more bits one code for both samples takes than two codes. This is half of Pearson's
// chi-squared statistic for the hypothesis that both samples have the same distribution, in bits.
// If the samples are similar, it is about what EntropyBits() would give.
float JoiningBits(const BlockPlan& a, const BlockPlan& b) {
  const auto a_nbytes = static_cast<float>(a.sample_nbytes);
  const auto b_nbytes = static_cast<float>(b.sample_nbytes);
  Lanes sum{};
  for (std::size_t s = 0; s < a.sample.size(); s += kLanes) {
    const LaneCounts in_a = LoadCounts(a.sample, s);
    const LaneCounts in_b = LoadCounts(b.sample, s);
    const Lanes difference = ToFloats(in_a) * b_nbytes - ToFloats(in_b) * a_nbytes;
    sum += difference * difference / AtLeastOne(in_a + in_b);
  }
  const float square = Sum(sum) / (a_nbytes * b_nbytes);
  constexpr float kLn2 = 0.6931472F;
  return square / (2 * kLn2);
}

// Calls literals(bytes) for each part of a stretch of a run that is outside repeats.
template <typename Literals>
void ForEachLiterals(const Run& run, std::size_t begin, std::size_t end,
                     const std::vector<Repeat>& repeats, std::size_t* next, Literals literals) {
  SplitAtRepeats(
      begin, end, repeats, next, kShortestRepeat,
      [&](std::size_t from, std::size_t to) {
        literals(Span{run.bytes.data + (from - run.begin), to - from});
      },
      [](std::size_t, std::size_t, std::size_t) {});
}

// A stretch as a block, with the literals of these slices counted. Sets *longest to the longest
// part that is outside repeats.
BlockPlan CountStretch(const Run& run, std::size_t begin, std::size_t end,
                       const std::vector<Repeat>& repeats, std::uint32_t slices, std::size_t* next,
                       Span* longest) {
  BlockPlan block{begin, end, BlockKind::kLiterals, {}, 0, 0};
  Counter counter;
  *longest = {run.bytes.data + (begin - run.begin), 0};
  ForEachLiterals(run, begin, end, repeats, next, [&](Span literals) {
    counter.Add(literals, slices);
    block.literal_nbytes += literals.nbytes;
    if (literals.nbytes > longest->nbytes) *longest = literals;
  });
  counter.AddTo(&block);
  return block;
}

BlockKind KindOf(const BlockPlan& stretch, float bits, Span longest) {
  if (stretch.literal_nbytes < kProbeNbytes) return BlockKind::kLiterals;
  const auto nbytes = static_cast<float>(stretch.sample_nbytes);
  if (bits < kNoiseBits * nbytes &&
      HasRepeats({longest.data, std::min(longest.nbytes, kProbeNbytes)})) {
    return BlockKind::kMatches;
  }
  if (stretch.literal_nbytes == stretch.end - stretch.begin &&
      bits / 8 + nbytes / static_cast<float>(kWorthwhile) >= nbytes) {
    return BlockKind::kStored;
  }
  return BlockKind::kLiterals;
}

void JoinSamples(const BlockPlan& b, BlockPlan* a) {
  a->sample_nbytes += b.sample_nbytes;
  for (std::size_t s = 0; s < a->sample.size(); ++s) a->sample[s] += b.sample[s];
}

// Appends b to a, its neighbour.
void Join(const BlockPlan& b, BlockPlan* a) {
  a->end = b.end;
  a->literal_nbytes += b.literal_nbytes;
  JoinSamples(b, a);
}

// Calls stretch(run, begin, end) for each stretch of the runs in [begin, end). begin is where a
// stretch begins, and end where one ends.
template <typename Stretch>
void ForEachStretch(const std::vector<Run>& runs, std::size_t begin, std::size_t end,
                    Stretch stretch) {
  for (const Run& run : runs) {
    const std::size_t last = std::min(end, run.end());
    for (std::size_t at = std::max(begin, run.begin); at < last; at += kStretchNbytes) {
      stretch(run, at, std::min(last, at + kStretchNbytes));
    }
  }
}

// Enlarges samples that are too small to make a code from. It counts the next slices in
// kSliceOrder, after the first `counted`. Of short blocks it counts all bytes again.
void CountMore(const std::vector<Run>& runs, const std::vector<Repeat>& repeats,
               std::size_t counted, std::vector<BlockPlan>* blocks) {
  std::size_t next = 0;
  for (BlockPlan& block : *blocks) {
    const std::size_t wanted = std::min(kSampleNbytes, block.literal_nbytes);
    if (block.kind != BlockKind::kLiterals || block.sample_nbytes >= wanted) continue;
    while (next < repeats.size() && repeats[next].end <= block.begin) ++next;
    std::uint32_t slices = Slices(0, kSliceOrder.size());
    if (wanted == block.literal_nbytes) {
      block.sample = {};
      block.sample_nbytes = 0;
    } else {
      const std::size_t missing = (wanted - block.sample_nbytes) * kSliceOrder.size();
      const std::size_t more = (missing + block.literal_nbytes - 1) / block.literal_nbytes;
      slices = Slices(counted, std::min(counted + more, kSliceOrder.size()));
    }
    Counter counter;
    ForEachStretch(runs, block.begin, block.end,
                   [&](const Run& run, std::size_t begin, std::size_t end) {
                     ForEachLiterals(run, begin, end, repeats, &next,
                                     [&](Span literals) { counter.Add(literals, slices); });
                   });
    counter.AddTo(&block);
  }
}

// Removes chance differences from a sample (see kNeighbours).
void Smooth(BlockPlan* block) {
  if (block->sample_nbytes == block->literal_nbytes) return;  // every byte is counted, so no chance
  Histogram& sample = block->sample;
  block->sample_nbytes = 0;
  for (auto from = sample.begin(); from != sample.end(); from += kNeighbours) {
    const auto to = from + kNeighbours;
    const auto least = static_cast<float>(*std::min_element(from, to));
    const auto most = static_cast<std::uint32_t>(least + kChance * std::sqrt(least));
    std::uint32_t sum = 0;
    std::uint32_t alike = 0;
    for (auto count = from; count != to; ++count) {
      sum += *count <= most ? *count : 0;
      alike += *count <= most ? 1 : 0;
    }
    const std::uint32_t mean = (sum + alike / 2) / alike;
    for (auto count = from; count != to; ++count) {
      if (*count <= most) *count = mean;
      block->sample_nbytes += *count;
    }
  }
}

}  // namespace

std::vector<BlockPlan> PlanBlocks(const std::vector<Run>& runs, const std::vector<Repeat>& repeats,
                                  BlockSizes sizes) {
  const bool coarse = sizes == BlockSizes::kCoarse;
  const std::size_t slices = coarse ? kSlicesCounted / 2 : kSlicesCounted;
  const float split_bits = coarse ? kCoarseSplitBits : kSplitBits;
  const float glance_bits = kFlatteryBits + kAtAGlance * (split_bits - kFlatteryBits);
  std::vector<BlockPlan> blocks;
  std::optional<float> last_bits;  // EntropyBits() of the last block, if known
  std::size_t next = 0;
  const auto is_like_last = [&](const BlockPlan& stretch, float most_bits) {
    return !blocks.empty() && blocks.back().kind == BlockKind::kLiterals &&
           stretch.sample_nbytes != 0 && blocks.back().sample_nbytes != 0 &&
           JoiningBits(blocks.back(), stretch) <= most_bits;
  };
  const auto append_to_last = [&](const BlockPlan& stretch) {
    Join(stretch, &blocks.back());
    last_bits.reset();
  };
  const auto add = [&](const Run& run, std::size_t begin, std::size_t end) {
    Span longest;
    const auto count = [&](std::uint32_t counted, std::size_t* from) {
      return CountStretch(run, begin, end, repeats, counted, from, &longest);
    };
    std::size_t again = next;
    BlockPlan stretch = count(Slices(0, slices / 2), &next);
    if (is_like_last(stretch, glance_bits)) return append_to_last(stretch);
    JoinSamples(count(Slices(slices / 2, slices), &again), &stretch);
    if (is_like_last(stretch, split_bits)) return append_to_last(stretch);
    const float bits = EntropyBits(stretch);
    stretch.kind = KindOf(stretch, bits, longest);
    if (!blocks.empty() && blocks.back().kind == stretch.kind) {
      if (stretch.kind != BlockKind::kLiterals) {
        Join(stretch, &blocks.back());
        return;
      }
      BlockPlan both = blocks.back();
      Join(stretch, &both);
      if (!last_bits) last_bits = EntropyBits(blocks.back());
      const float both_bits = EntropyBits(both);
      if (both_bits <= *last_bits + bits + split_bits) {
        blocks.back() = both;
        last_bits = both_bits;
        return;
      }
    }
    blocks.push_back(stretch);
    last_bits = bits;
  };
  ForEachStretch(runs, 0, runs.empty() ? 0 : runs.back().end(), add);
  CountMore(runs, repeats, slices, &blocks);
  for (BlockPlan& block : blocks) Smooth(&block);
  return blocks;
}

std::size_t MostBlocks(const std::vector<Run>& runs) {
  std::size_t stretches = 0;
  for (const Run& run : runs) stretches += (run.bytes.nbytes + kStretchNbytes - 1) / kStretchNbytes;
  return stretches;
}

}  // namespace pyckpt
