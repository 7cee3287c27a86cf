#include "bzip2_huffman.h"

#include <algorithm>
#include <numeric>

#include "huffman.h"

namespace pyckpt::bzip2 {
namespace {

// Costs of one symbol, or sums over a group, in all tables: added up in one
// instruction. 50 codes of 17 bits do not overflow; the last two stay zero.
using Costs = std::uint16_t __attribute__((vector_size(16)));

using Counts = std::array<std::uint32_t, kMostSymbols>;

// How often groups are given to tables and tables fitted to their groups: more
// gains next to nothing.
constexpr int kRounds = 4;

// Short blocks do not repay the description of many tables. The limits are the
// reference encoder's.
std::size_t ChooseTables(std::size_t symbols) {
  constexpr std::array<std::size_t, kMostTables - 2> kLimits = {200, 600, 1200, 2400};
  std::size_t tables = 2;
  for (const std::size_t limit : kLimits) tables += symbols >= limit ? 1 : 0;
  return tables;
}

// The first guess: table t is for the t-th part of the alphabet, cut where each
// part occurs about as often.
void GuessLengths(const RankedBlock& block, GroupCodes* codes) {
  constexpr std::uint8_t kDear = 15;
  Counts counts{};
  for (std::size_t i = 0; i < block.count; ++i) ++counts[block.symbols[i]];
  std::size_t rest = block.count;
  std::size_t begin = 0;
  for (std::size_t parts = codes->tables; parts > 0; --parts) {
    const std::size_t share = rest / parts;
    std::size_t end = begin;
    std::size_t sum = 0;
    while (sum < share && end < block.alphabet) sum += counts[end++];
    // Every other part stops short, lest the last be left with nothing.
    const std::size_t done = codes->tables - parts;
    if (end > begin + 1 && parts > 1 && done % 2 == 1) sum -= counts[--end];
    std::array<std::uint8_t, kMostSymbols>& lengths = codes->lengths[parts - 1];
    lengths.fill(kDear);
    std::fill(lengths.begin() + static_cast<std::ptrdiff_t>(begin),
              lengths.begin() + static_cast<std::ptrdiff_t>(end), std::uint8_t{0});
    begin = end;
    rest -= sum;
  }
}

// Gives each group to its cheapest table and counts what each table gets.
void Select(const RankedBlock& block, GroupCodes* codes, std::array<Counts, kMostTables>* counts) {
  std::array<Costs, kMostSymbols> costs{};
  for (std::size_t s = 0; s < block.alphabet; ++s) {
    for (std::size_t t = 0; t < codes->tables; ++t) costs[s][t] = codes->lengths[t][s];
  }
  for (Counts& c : *counts) c.fill(0);
  codes->selectors.clear();
  for (std::size_t begin = 0; begin < block.count; begin += kGroup) {
    const std::uint16_t* symbols = block.symbols.data() + begin;
    const std::size_t n = std::min(kGroup, block.count - begin);
    Costs sum{};
    for (std::size_t i = 0; i < n; ++i) sum += costs[symbols[i]];
    std::size_t best = 0;
    for (std::size_t t = 1; t < codes->tables; ++t) best = sum[t] < sum[best] ? t : best;
    codes->selectors.push_back(static_cast<std::uint8_t>(best));
    Counts& count = (*counts)[best];
    for (std::size_t i = 0; i < n; ++i) ++count[symbols[i]];
  }
}

// Fits each table to what it got, and adds up what that costs.
void Fit(const std::array<Counts, kMostTables>& counts, std::size_t alphabet, GroupCodes* codes) {
  std::vector<std::uint64_t> frequencies(alphabet);
  codes->nbits = 0;
  for (std::size_t t = 0; t < codes->tables; ++t) {
    for (std::size_t s = 0; s < alphabet; ++s) {
      frequencies[s] = std::max<std::uint64_t>(counts[t][s], 1);
    }
    const std::vector<std::uint8_t> lengths = BuildHuffmanLengths(frequencies, kLongestCode);
    std::copy(lengths.begin(), lengths.end(), codes->lengths[t].begin());
    for (std::size_t s = 0; s < alphabet; ++s) {
      codes->nbits += std::uint64_t{counts[t][s]} * lengths[s];
    }
  }
}

}  // namespace

void ChooseCodes(const RankedBlock& block, GroupCodes* out) {
  out->tables = ChooseTables(block.count);
  GuessLengths(block, out);
  std::array<Counts, kMostTables> counts;
  for (int round = 0; round < kRounds; ++round) {
    Select(block, out, &counts);
    Fit(counts, block.alphabet, out);
  }
}

}  // namespace pyckpt::bzip2
