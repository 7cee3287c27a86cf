#include "codec/bzip2/huffman.h"

#include <algorithm>
#include <numeric>

#include "codec/huffman.h"

namespace pyckpt::bzip2 {
namespace {

// The cost of one symbol, or of a group, in each of the tables, in bits. One instruction adds them
// all. 50 codes of 17 bits do not overflow. The last two lanes stay zero.
using Costs = std::uint16_t __attribute__((vector_size(16)));

using Counts = std::array<std::uint32_t, kMostSymbols>;

// Each round gives groups to tables and fits the tables to their groups. The first rounds use one
// group in kSomeEvery, if that leaves each table kEnough groups on average, else all groups. The
// last rounds use all groups. More rounds gain almost nothing.
constexpr int kRoundsOfSome = 5;
constexpr std::size_t kSomeEvery = 8;
constexpr std::size_t kEnough = 32;
constexpr int kRoundsOfAll = 2;

// In short blocks, many tables cost more than they save. The limits are those of the reference
// encoder.
std::size_t ChooseTables(std::size_t symbols) {
  constexpr std::array<std::size_t, kMostTables - 2> kLimits = {200, 600, 1200, 2400};
  std::size_t tables = 2;
  for (const std::size_t limit : kLimits) tables += symbols >= limit ? 1 : 0;
  return tables;
}

// The first guess. The alphabet is cut into as many parts as there are tables, so that the symbols
// of each part occur about equally often. Each part has a table in which its symbols are cheap and
// all others expensive.
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
    // Every other part gives back its last symbol, so that something is left for the last part.
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

// The table that writes these symbols in the fewest bits.
[[gnu::always_inline]] inline std::uint8_t Cheapest(const std::uint16_t* symbols, std::size_t n,
                                                    const std::array<Costs, kMostSymbols>& costs) {
  Costs even{};
  Costs odd{};
  std::size_t i = 0;
  for (; i + 2 <= n; i += 2) {
    even += costs[symbols[i]];
    odd += costs[symbols[i + 1]];
  }
  if (i < n) even += costs[symbols[i]];
  // Each word has the cost in its upper half and the table's number in its lower half. So the
  // smallest word names the cheapest table.
  const Costs sum = even + odd;
  std::uint32_t best = std::uint32_t{sum[0]} << 16;
  for (std::uint32_t t = 1; t < kMostTables; ++t) {
    best = std::min(best, std::uint32_t{sum[t]} << 16 | t);
  }
  return static_cast<std::uint8_t>(best);
}

// Gives each group, or one group in every `every`, to its cheapest table. Updates counts, the
// number of occurrences of each symbol in each table's groups.
void Select(const RankedBlock& block, std::size_t every, GroupCodes* codes,
            std::array<Counts, kMostTables>* counts) {
  constexpr std::uint16_t kNoTable = 1000;
  std::array<Costs, kMostSymbols> costs{};
  for (std::size_t s = 0; s < block.alphabet; ++s) {
    for (std::size_t t = 0; t < kMostTables; ++t) {
      costs[s][t] = t < codes->tables ? codes->lengths[t][s] : kNoTable;
    }
  }
  const std::size_t groups = (block.count + kGroup - 1) / kGroup;
  const bool first = codes->selectors.empty();
  codes->selectors.resize(groups);
  for (std::size_t group = 0; group < groups; group += every) {
    const std::uint16_t* symbols = block.symbols.data() + group * kGroup;
    const std::size_t n = std::min(kGroup, block.count - group * kGroup);
    const std::uint8_t best =
        n == kGroup ? Cheapest(symbols, kGroup, costs) : Cheapest(symbols, n, costs);
    std::uint8_t& selector = codes->selectors[group];
    if (!first && selector == best) continue;
    for (std::size_t i = 0; i < n; ++i) ++(*counts)[best][symbols[i]];
    if (!first) {
      for (std::size_t i = 0; i < n; ++i) --(*counts)[selector][symbols[i]];
    }
    selector = best;
  }
}

// Fits each table to its counts, and sums up the cost in bits.
void Fit(const std::array<Counts, kMostTables>& counts, std::size_t alphabet, GroupCodes* codes) {
  std::vector<std::uint64_t> frequencies(alphabet);
  codes->nbits = 0;
  for (std::size_t t = 0; t < codes->tables; ++t) {
    for (std::size_t s = 0; s < alphabet; ++s) {
      frequencies[s] = std::max<std::uint64_t>(counts[t][s], 1);
    }
    const std::vector<std::uint8_t> lengths = HuffmanTree(frequencies).Lengths(kLongestCode);
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
  const auto fit = [&](int rounds, std::size_t every) {
    std::array<Counts, kMostTables> counts{};
    out->selectors.clear();
    for (int round = 0; round < rounds; ++round) {
      Select(block, every, out, &counts);
      Fit(counts, block.alphabet, out);
    }
  };
  const std::size_t some = block.count / (kGroup * kSomeEvery);
  fit(kRoundsOfSome, some >= kEnough * kMostTables ? kSomeEvery : 1);
  fit(kRoundsOfAll, 1);
}

}  // namespace pyckpt::bzip2
