#include "deflate_plan.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "probe.h"

namespace pyckpt::deflate {
namespace {

constexpr std::size_t kStretchNbytes = std::size_t{16} << 10;
constexpr std::size_t kProbeNbytes = 512;

// Bytes of so much entropy are no text and no integers: only long repeats can
// be found in them, and those are known.
constexpr float kNoiseBits = 7;

// One slice in so many is counted. All of a tensor's bytes look alike.
constexpr std::size_t kSliceNbytes = 256;
constexpr std::size_t kSliceEvery = 4;

// A code is made from so many bytes at least, or from all of a shorter block. What
// it lacks for being made from a sample is 23 bytes for each byte of the block by
// each of the sample: here one in 2,800.
constexpr std::size_t kSampleNbytes = std::size_t{64} << 10;

// Literals have to save this share before they are worth decoding: one part in.
constexpr std::size_t kWorthwhile = 500;

// What a block of its own has to save, in bits of the sample. A sample flatters
// the code that is made from it, by about half a symbol's worth of bits for each
// symbol: 255 / (2 ln 2). The rest is the block's header.
constexpr float kFlatteryBits = 184;
constexpr float kSplitBits = kFlatteryBits + 96;

// Each block costs time too, and most save little: up to this level samples are half
// as large, and a block has to save three times as much.
constexpr int kLastCoarseLevel = 6;
constexpr float kCoarseSplitBits = kFlatteryBits + 144;

// Most stretches are so like the block before that half of the sample tells. In half of
// it a difference shows half as clearly, and half of that is left for chance.
constexpr float kAtAGlance = 0.25F;

// Four at once: loops over histograms are not vectorised by themselves.
using Lanes = float __attribute__((vector_size(16)));
using LaneCounts = std::int32_t __attribute__((vector_size(16)));
constexpr std::size_t kLanes = sizeof(Lanes) / sizeof(float);

LaneCounts LoadCounts(const Histogram& histogram, std::size_t at) {
  LaneCounts counts{};
  std::memcpy(&counts, &histogram[at], sizeof counts);
  return counts;
}

Lanes ToFloats(LaneCounts counts) { return __builtin_convertvector(counts, Lanes); }

// At least one, so that there is a logarithm, or something to divide by.
Lanes AtLeastOne(LaneCounts counts) { return ToFloats(counts - (counts == 0)); }

float Sum(Lanes lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); }

// log2(x) for x >= 1, right to 0.0012: the exponent, and a cubic through the
// mantissa that meets log2 at 1, 4/3, 5/3 and 2.
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

// What a perfect code for exactly the bytes in the sample would take, in bits.
float EntropyBits(const BlockPlan& block) {
  Lanes sum{};
  for (std::size_t s = 0; s < block.sample.size(); s += kLanes) {
    const LaneCounts counts = LoadCounts(block.sample, s);
    sum += ToFloats(counts) * Log2(AtLeastOne(counts));
  }
  const auto n = static_cast<float>(block.sample_nbytes);
  return n * Log2(Lanes{n < 1 ? 1 : n})[0] - Sum(sum);
}

// Which slices are counted: one in every so many, from first on.
struct Slices {
  std::size_t first;
  std::size_t every;
};

// Counts bytes outside repeats. Four tables, so that equal neighbours do not wait
// for one counter.
class Counter {
 public:
  void Add(Span literals, Slices slices) {
    for (std::size_t at = kSliceNbytes * slices.first; at < literals.nbytes;
         at += kSliceNbytes * slices.every) {
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

  void StoreIn(BlockPlan* block) const {
    block->sample_nbytes = nbytes_;
    for (std::size_t s = 0; s < block->sample.size(); ++s) {
      block->sample[s] = counts_[0][s] + counts_[1][s] + counts_[2][s] + counts_[3][s];
    }
  }

 private:
  std::array<Histogram, 4> counts_{};
  std::size_t nbytes_ = 0;
};

// Bits that one code for both takes more than two codes do, in bits of the samples:
// half the statistic by which samples are tested for being of one kind (chi-squared,
// Pearson), which for samples that are alike is what EntropyBits() would tell.
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

// The bytes of a stretch outside repeats, counted.
BlockPlan CountStretch(const Run& run, std::size_t begin, std::size_t end,
                       const std::vector<Repeat>& repeats, Slices slices, std::size_t* next,
                       Span* longest) {
  BlockPlan block{begin, end, BlockKind::kLiterals, {}, 0, 0};
  Counter counter;
  const auto at = [&](std::size_t place) { return run.bytes.data + (place - run.begin); };
  *longest = {at(begin), 0};
  SplitAtRepeats(
      begin, end, repeats, next, kShortestRepeat,
      [&](std::size_t from, std::size_t to) {
        const Span literals = {at(from), to - from};
        counter.Add(literals, slices);
        block.literal_nbytes += literals.nbytes;
        if (literals.nbytes > longest->nbytes) *longest = literals;
      },
      [](std::size_t, std::size_t, std::size_t) {});
  counter.StoreIn(&block);
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

// Replaces samples that are too small to make a code of.
void CountMore(const std::vector<Run>& runs, const std::vector<Repeat>& repeats,
               std::vector<BlockPlan>* blocks) {
  std::size_t next = 0;
  for (BlockPlan& block : *blocks) {
    Counter counter;
    const bool more = block.kind == BlockKind::kLiterals &&
                      block.sample_nbytes < std::min(kSampleNbytes, block.literal_nbytes);
    const Slices slices = {0, std::max<std::size_t>(1, block.literal_nbytes / kSampleNbytes)};
    SplitAtRepeats(
        block.begin, block.end, repeats, &next, kShortestRepeat,
        [&](std::size_t from, std::size_t to) {
          if (!more) return;
          ForEachPart(runs, from, to, [&](Span literals) { counter.Add(literals, slices); });
        },
        [](std::size_t, std::size_t, std::size_t) {});
    if (more) counter.StoreIn(&block);
  }
}

}  // namespace

std::vector<BlockPlan> PlanBlocks(const std::vector<Run>& runs, const std::vector<Repeat>& repeats,
                                  int level) {
  const bool coarse = level <= kLastCoarseLevel;
  const std::size_t slice_every = coarse ? 2 * kSliceEvery : kSliceEvery;
  const float split_bits = coarse ? kCoarseSplitBits : kSplitBits;
  const float glance_bits = kFlatteryBits + kAtAGlance * (split_bits - kFlatteryBits);
  std::vector<BlockPlan> blocks;
  std::optional<float> last_bits;  // of the last block, if known
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
    const auto count = [&](std::size_t first_slice, std::size_t* from) {
      return CountStretch(run, begin, end, repeats, {first_slice, 2 * slice_every}, from, &longest);
    };
    std::size_t again = next;
    BlockPlan stretch = count(0, &next);
    if (is_like_last(stretch, glance_bits)) return append_to_last(stretch);
    JoinSamples(count(slice_every, &again), &stretch);
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
  for (const Run& run : runs) {
    for (std::size_t at = run.begin; at < run.end(); at += kStretchNbytes) {
      add(run, at, std::min(run.end(), at + kStretchNbytes));
    }
  }
  CountMore(runs, repeats, &blocks);
  return blocks;
}

std::size_t MostBlocks(const std::vector<Run>& runs) {
  std::size_t stretches = 0;
  for (const Run& run : runs) stretches += (run.bytes.nbytes + kStretchNbytes - 1) / kStretchNbytes;
  return stretches;
}

}  // namespace pyckpt::deflate
