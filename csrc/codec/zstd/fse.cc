#include "codec/zstd/fse.h"

#include <algorithm>
#include <numeric>

namespace pyckpt::zstd {
namespace {

// How many states a symbol has.
std::uint32_t States(std::int16_t share) {
  return share == FseDistribution::kRare ? 1 : static_cast<std::uint32_t>(share);
}

// The symbol of each state, in the order that the format demands.
std::vector<std::size_t> SpreadSymbols(const FseDistribution& distribution) {
  const std::size_t size = std::size_t{1} << distribution.log;
  const std::size_t step = (size >> 1) + (size >> 3) + 3;
  std::vector<std::size_t> symbols(size);
  std::size_t end = size;  // rare symbols have the last states
  for (std::size_t s = 0; s < distribution.shares.size(); ++s) {
    if (distribution.shares[s] == FseDistribution::kRare) symbols[--end] = s;
  }
  std::size_t at = 0;
  for (std::size_t s = 0; s < distribution.shares.size(); ++s) {
    for (std::int16_t i = 0; i < distribution.shares[s]; ++i) {
      symbols[at] = s;
      do {
        at = (at + step) & (size - 1);
      } while (at >= end);
    }
  }
  return symbols;
}

}  // namespace

FseDistribution NormalizedShares(const std::vector<std::size_t>& counts, int log) {
  const std::size_t size = std::size_t{1} << log;
  const std::size_t total = std::accumulate(counts.begin(), counts.end(), std::size_t{0});
  const double scale = static_cast<double>(size) / static_cast<double>(total);
  FseDistribution distribution{log, {}};
  std::size_t used = 0;
  for (const std::size_t count : counts) {
    const auto scaled = static_cast<std::size_t>(static_cast<double>(count) * scale);
    const std::size_t share = count == 0 ? 0 : std::max<std::size_t>(scaled, 1);
    distribution.shares.push_back(static_cast<std::int16_t>(share));
    used += share;
  }
  // The most frequent symbol notices a changed share least.
  const auto most = [&] {
    return std::max_element(distribution.shares.begin(), distribution.shares.end());
  };
  if (used < size) *most() = static_cast<std::int16_t>(*most() + (size - used));
  for (; used > size; --used) --*most();
  return distribution;
}

void WriteDistribution(const FseDistribution& distribution, BitWriter* writer) {
  constexpr int kLeastLog = 5;
  const std::vector<std::int16_t>& shares = distribution.shares;
  writer->Put(static_cast<std::uint64_t>(distribution.log - kLeastLog), 4);
  // One more than what is left, so that every value from kRare to what is left has a number.
  std::uint32_t left = (1U << distribution.log) + 1;
  std::uint32_t threshold = 1U << distribution.log;
  std::uint64_t nbits = static_cast<std::uint64_t>(distribution.log) + 1;
  for (std::size_t s = 0; left > 1;) {
    const auto value = static_cast<std::uint32_t>(shares[s] + 1);
    // The lowest values take one bit less.
    const std::uint32_t shorter = 2 * threshold - 1 - left;
    if (value < shorter) {
      writer->Put(value, nbits - 1);
    } else {
      writer->Put(value < threshold ? value : value + shorter, nbits);
    }
    left -= States(shares[s]);
    while (left < threshold) {
      --nbits;
      threshold >>= 1;
    }
    if (shares[s++] != 0) continue;
    // Zeros that follow a zero: threes, then the rest.
    std::size_t zeros = 0;
    while (shares[s + zeros] == 0) ++zeros;
    s += zeros;
    for (; zeros >= 3; zeros -= 3) writer->Put(3, 2);
    writer->Put(zeros, 2);
  }
}

FseTable::FseTable(const FseDistribution& distribution) : log_(distribution.log) {
  std::uint32_t begin = 0;
  for (const std::int16_t share : distribution.shares) {
    counts_.push_back(States(share));
    begins_.push_back(begin);
    begin += counts_.back();
  }
  states_.resize(begin);
  std::vector<std::uint32_t> next = begins_;
  const std::vector<std::size_t> symbols = SpreadSymbols(distribution);
  for (std::size_t state = 0; state < symbols.size(); ++state) {
    states_[next[symbols[state]]++] = static_cast<std::uint16_t>(symbols.size() + state);
  }
}

// A decoder never leaves this state, so any state of the symbol will do. The first one reads at
// least one bit when it is left: some decoders notice the end of the stream by that.
FseCoder::FseCoder(const FseTable& table, std::size_t last)
    : table_(table), state_(table.states_[table.begins_[last]]) {}

void FseCoder::Put(std::size_t symbol, BitWriter* writer) {
  const std::uint32_t count = table_.counts_[symbol];
  unsigned nbits = 0;
  while (state_ >> nbits >= 2 * count) ++nbits;
  writer->Put(state_ & ((1U << nbits) - 1), nbits);
  state_ = table_.states_[table_.begins_[symbol] + (state_ >> nbits) - count];
}

void FseCoder::Finish(BitWriter* writer) const {
  writer->Put(state_ - (1U << table_.log_), static_cast<std::uint64_t>(table_.log_));
}

}  // namespace pyckpt::zstd
