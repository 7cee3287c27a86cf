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

// A code from a sample costs some hundred bytes a block: shorter ones are counted.
constexpr std::size_t kCountedNbytes = std::size_t{256} << 10;

// Literals have to save this share before they are worth decoding: one part in.
constexpr std::size_t kWorthwhile = 500;

// What a block of its own has to save, in bits of the sample. A sample flatters
// the code that is made from it, by about half a symbol's worth of bits for each
// symbol: 255 / (2 ln 2). The rest is the block's header.
constexpr float kSplitBits = 184 + 96;

// Each block costs time too, and most save little: up to this level one has to save
// twice its cost.
constexpr int kLastCoarseLevel = 6;

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
      for (; i + 4 <= end; i += 4) {
        ++counts_[0][literals.data[i]];
        ++counts_[1][literals.data[i + 1]];
        ++counts_[2][literals.data[i + 2]];
        ++counts_[3][literals.data[i + 3]];
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

BlockPlan PlanStretch(Span chunk, std::size_t begin, std::size_t end,
                      const std::vector<Repeat>& repeats, std::size_t* next) {
  BlockPlan block{begin, end, BlockKind::kLiterals, {}, 0, 0};
  Counter counter;
  Span longest = {chunk.data + begin, 0};
  SplitAtRepeats(
      begin, end, repeats, next, kShortestRepeat,
      [&](std::size_t from, std::size_t to) {
        const Span literals = {chunk.data + from, to - from};
        counter.Add(literals, kSliceEvery);
        block.literal_nbytes += literals.nbytes;
        if (literals.nbytes > longest.nbytes) longest = literals;
      },
      [](std::size_t, std::size_t, std::size_t) {});
  counter.StoreIn(&block);
  if (block.literal_nbytes < kProbeNbytes) return block;

  const float bits = EntropyBits(block.sample, block.sample_nbytes);
  const auto nbytes = static_cast<float>(block.sample_nbytes);
  if (bits < kNoiseBits * nbytes &&
      HasRepeats({longest.data, std::min(longest.nbytes, kProbeNbytes)})) {
    block.kind = BlockKind::kMatches;
    return block;
  }
  if (block.literal_nbytes == end - begin &&
      bits / 8 + nbytes / static_cast<float>(kWorthwhile) >= nbytes) {
    block.kind = BlockKind::kStored;
  }
  return block;
}

BlockPlan Joined(const BlockPlan& a, const BlockPlan& b) {
  BlockPlan both = a;
  both.end = b.end;
  both.sample_nbytes += b.sample_nbytes;
  both.literal_nbytes += b.literal_nbytes;
  for (std::size_t s = 0; s < both.sample.size(); ++s) both.sample[s] += b.sample[s];
  return both;
}

// Replaces samples of short blocks by counts.
void CountShort(Span chunk, const std::vector<Repeat>& repeats, std::vector<BlockPlan>* blocks) {
  std::size_t next = 0;
  for (BlockPlan& block : *blocks) {
    Counter counter;
    const bool counted =
        block.kind == BlockKind::kLiterals && block.literal_nbytes < kCountedNbytes;
    SplitAtRepeats(
        block.begin, block.end, repeats, &next, kShortestRepeat,
        [&](std::size_t from, std::size_t to) {
          if (counted) counter.Add({chunk.data + from, to - from}, 1);
        },
        [](std::size_t, std::size_t, std::size_t) {});
    if (counted) counter.StoreIn(&block);
  }
}

}  // namespace

std::vector<BlockPlan> PlanBlocks(Span chunk, const std::vector<Repeat>& repeats, int level) {
  const float split_bits = level <= kLastCoarseLevel ? 2 * kSplitBits : kSplitBits;
  std::vector<BlockPlan> blocks;
  float last_bits = 0;  // of the last block's sample
  std::size_t next = 0;
  for (std::size_t begin = 0; begin < chunk.nbytes; begin += kStretchNbytes) {
    const std::size_t end = std::min(chunk.nbytes, begin + kStretchNbytes);
    const BlockPlan stretch = PlanStretch(chunk, begin, end, repeats, &next);
    const float stretch_bits = EntropyBits(stretch.sample, stretch.sample_nbytes);
    if (!blocks.empty() && blocks.back().kind == stretch.kind) {
      const BlockPlan both = Joined(blocks.back(), stretch);
      const float both_bits = EntropyBits(both.sample, both.sample_nbytes);
      if (stretch.kind != BlockKind::kLiterals ||
          both_bits <= last_bits + stretch_bits + split_bits) {
        blocks.back() = both;
        last_bits = both_bits;
        continue;
      }
    }
    blocks.push_back(stretch);
    last_bits = stretch_bits;
  }
  CountShort(chunk, repeats, &blocks);
  return blocks;
}

}  // namespace pyckpt::deflate
