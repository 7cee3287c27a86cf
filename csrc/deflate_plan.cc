#include "deflate_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

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

// log2(x) for x >= 1, right to 0.0012: the exponent, and a cubic through the
// mantissa that meets log2 at 1, 4/3, 5/3 and 2. Simple enough to be vectorised.
float Log2(float x) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  const auto exponent = static_cast<float>(static_cast<int>(bits >> 23) - 127);
  bits = (bits & 0x7FFFFF) | 0x3F800000;
  float m = 0;
  std::memcpy(&m, &bits, sizeof m);
  m -= 1;
  return exponent + m * (1.41899F + m * (-0.57296F + m * 0.15397F));
}

// What a perfect code for exactly these bytes would take, in bits.
float EntropyBits(const Histogram& histogram, std::size_t nbytes) {
  std::array<float, 8> sums{};  // as many as a vector holds
  for (std::size_t s = 0; s < histogram.size(); s += sums.size()) {
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const auto c = static_cast<float>(static_cast<std::int32_t>(histogram[s + i]));
      sums[i] += c * Log2(c < 1 ? 1 : c);
    }
  }
  const auto n = static_cast<float>(nbytes);
  return n * Log2(n < 1 ? 1 : n) - std::accumulate(sums.begin(), sums.end(), 0.0F);
}

// Counts bytes outside repeats. Four tables, so that equal neighbours do not wait
// for one counter.
class Counter {
 public:
  void Add(Span literals, std::size_t one_slice_in) {
    for (std::size_t at = 0; at < literals.nbytes; at += kSliceNbytes * one_slice_in) {
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
  std::array<float, 8> sums{};
  for (std::size_t s = 0; s < a.sample.size(); s += sums.size()) {
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const auto in_a = static_cast<float>(static_cast<std::int32_t>(a.sample[s + i]));
      const auto in_b = static_cast<float>(static_cast<std::int32_t>(b.sample[s + i]));
      const float difference = in_a * b_nbytes - in_b * a_nbytes;
      const float both = in_a + in_b;
      sums[i] += difference * difference / (both < 1 ? 1 : both);
    }
  }
  const float square = std::accumulate(sums.begin(), sums.end(), 0.0F) / (a_nbytes * b_nbytes);
  constexpr float kLn2 = 0.6931472F;
  return square / (2 * kLn2);
}

// The bytes of a stretch outside repeats, counted.
BlockPlan CountStretch(Span chunk, std::size_t begin, std::size_t end,
                       const std::vector<Repeat>& repeats, std::size_t slice_every,
                       std::size_t* next, Span* longest) {
  BlockPlan block{begin, end, BlockKind::kLiterals, {}, 0, 0};
  Counter counter;
  *longest = {chunk.data + begin, 0};
  SplitAtRepeats(
      begin, end, repeats, next, kShortestRepeat,
      [&](std::size_t from, std::size_t to) {
        const Span literals = {chunk.data + from, to - from};
        counter.Add(literals, slice_every);
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

BlockPlan Joined(const BlockPlan& a, const BlockPlan& b) {
  BlockPlan both = a;
  both.end = b.end;
  both.sample_nbytes += b.sample_nbytes;
  both.literal_nbytes += b.literal_nbytes;
  for (std::size_t s = 0; s < both.sample.size(); ++s) both.sample[s] += b.sample[s];
  return both;
}

// Replaces samples that are too small to make a code of.
void CountMore(Span chunk, const std::vector<Repeat>& repeats, std::vector<BlockPlan>* blocks) {
  std::size_t next = 0;
  for (BlockPlan& block : *blocks) {
    Counter counter;
    const bool more = block.kind == BlockKind::kLiterals &&
                      block.sample_nbytes < std::min(kSampleNbytes, block.literal_nbytes);
    const std::size_t slice_every = std::max<std::size_t>(1, block.literal_nbytes / kSampleNbytes);
    SplitAtRepeats(
        block.begin, block.end, repeats, &next, kShortestRepeat,
        [&](std::size_t from, std::size_t to) {
          if (more) counter.Add({chunk.data + from, to - from}, slice_every);
        },
        [](std::size_t, std::size_t, std::size_t) {});
    if (more) counter.StoreIn(&block);
  }
}

}  // namespace

std::vector<BlockPlan> PlanBlocks(Span chunk, const std::vector<Repeat>& repeats, int level) {
  const bool coarse = level <= kLastCoarseLevel;
  const std::size_t slice_every = coarse ? 2 * kSliceEvery : kSliceEvery;
  const float split_bits = coarse ? kCoarseSplitBits : kSplitBits;
  std::vector<BlockPlan> blocks;
  std::size_t next = 0;
  for (std::size_t begin = 0; begin < chunk.nbytes; begin += kStretchNbytes) {
    const std::size_t end = std::min(chunk.nbytes, begin + kStretchNbytes);
    Span longest;
    BlockPlan stretch = CountStretch(chunk, begin, end, repeats, slice_every, &next, &longest);
    // Most stretches are like the last, which is known at a glance.
    if (!blocks.empty() && blocks.back().kind == BlockKind::kLiterals &&
        stretch.sample_nbytes != 0 && blocks.back().sample_nbytes != 0 &&
        JoiningBits(blocks.back(), stretch) <= split_bits) {
      blocks.back() = Joined(blocks.back(), stretch);
      continue;
    }
    const float bits = EntropyBits(stretch.sample, stretch.sample_nbytes);
    stretch.kind = KindOf(stretch, bits, longest);
    if (!blocks.empty() && blocks.back().kind == stretch.kind) {
      const BlockPlan both = Joined(blocks.back(), stretch);
      if (stretch.kind != BlockKind::kLiterals ||
          EntropyBits(both.sample, both.sample_nbytes) <=
              EntropyBits(blocks.back().sample, blocks.back().sample_nbytes) + bits + split_bits) {
        blocks.back() = both;
        continue;
      }
    }
    blocks.push_back(stretch);
  }
  CountMore(chunk, repeats, &blocks);
  return blocks;
}

}  // namespace pyckpt::deflate
