#include "codec/huffman.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

namespace pyckpt {
namespace {

constexpr std::size_t kLongest = 15;

struct Leaf {
  std::uint64_t frequency;
  std::uint16_t symbol;
};

// Sorted by frequency, rarest first; among equals the lower symbol first. This is a radix sort,
// byte by byte, because half of all comparisons in a comparing sort would be mispredicted.
std::vector<Leaf> SortedLeaves(const std::vector<std::uint64_t>& frequencies) {
  std::vector<Leaf> leaves;
  leaves.reserve(frequencies.size());
  std::uint64_t bits = 0;
  for (std::size_t s = 0; s < frequencies.size(); ++s) {
    if (frequencies[s] == 0) continue;
    leaves.push_back({frequencies[s], static_cast<std::uint16_t>(s)});
    bits |= frequencies[s];
  }
  std::vector<Leaf> sorted(leaves.size());
  for (unsigned shift = 0; bits >> shift != 0; shift += 8) {
    std::array<std::size_t, 257> places{};
    for (const Leaf& leaf : leaves) ++places[(leaf.frequency >> shift & 0xFF) + 1];
    for (std::size_t i = 1; i < places.size(); ++i) places[i] += places[i - 1];
    for (const Leaf& leaf : leaves) sorted[places[leaf.frequency >> shift & 0xFF]++] = leaf;
    leaves.swap(sorted);
  }
  return leaves;
}

// Huffman's method: the two lightest nodes are joined until one is left. Leaves are sorted, and
// joints are made in order of weight, so the lightest node is at the head of one of the two lists.
// Returns the depth of each leaf. There are at least two leaves.
std::vector<std::size_t> Depths(const std::vector<Leaf>& leaves) {
  constexpr std::uint64_t kNone = std::numeric_limits<std::uint64_t>::max();
  const std::size_t n = leaves.size();
  // The leaves, a sentinel, the joints. The sentinel and joints that are not made yet weigh kNone,
  // so they are never the lightest.
  std::vector<std::uint64_t> weights(2 * n, kNone);
  std::vector<std::size_t> parents(2 * n);
  for (std::size_t i = 0; i < n; ++i) weights[i] = leaves[i].frequency;
  std::size_t leaf = 0;
  std::size_t joint = n + 1;
  const auto take = [&](std::size_t parent) {
    // No branch here: which one is lighter cannot be predicted.
    const auto is_leaf = static_cast<std::size_t>(weights[leaf] <= weights[joint]);
    const std::size_t taken = is_leaf != 0 ? leaf : joint;
    leaf += is_leaf;
    joint += 1 - is_leaf;
    parents[taken] = parent;
    return weights[taken];
  };
  for (std::size_t parent = n + 1; parent < 2 * n; ++parent) {
    const std::uint64_t first = take(parent);
    weights[parent] = first + take(parent);
  }
  std::vector<std::size_t> depths(2 * n);  // the last joint is the root
  for (std::size_t i = 2 * n - 1; i-- > 0;) {
    if (i != n) depths[i] = depths[parents[i]] + 1;
  }
  depths.resize(n);
  return depths;
}

// How many codes have each length when none may be longer than limit. First, longer codes are cut
// to the limit; they then take more code space than there is. Each step frees one unit of it: a
// shorter leaf moves one level down, and a leaf of the limit's length becomes its sibling. The
// result is not optimal, but close, because only rare symbols are too long. An optimal method would
// cost more time than it is worth.
std::vector<std::size_t> LimitLengths(const std::vector<std::size_t>& unlimited,
                                      std::size_t limit) {
  std::vector<std::size_t> counts(limit + 1);
  // How much of the code space is used, in units of one code of the limit's length (Kraft's sum).
  std::size_t used = 0;
  for (std::size_t length = 1; length < unlimited.size(); ++length) {
    const std::size_t limited = std::min(length, limit);
    counts[limited] += unlimited[length];
    used += unlimited[length] << (limit - limited);
  }
  for (; used > std::size_t{1} << limit; --used) {
    std::size_t length = limit - 1;
    while (counts[length] == 0) --length;
    --counts[length];
    counts[length + 1] += 2;
    --counts[limit];
  }
  return counts;
}

std::uint16_t Reversed(std::uint32_t bits, unsigned length) {
  bits = (bits & 0x5555) << 1 | (bits >> 1 & 0x5555);
  bits = (bits & 0x3333) << 2 | (bits >> 2 & 0x3333);
  bits = (bits & 0x0F0F) << 4 | (bits >> 4 & 0x0F0F);
  bits = (bits & 0x00FF) << 8 | bits >> 8;
  return static_cast<std::uint16_t>(bits >> (16 - length));
}

}  // namespace

HuffmanTree::HuffmanTree(const std::vector<std::uint64_t>& frequencies)
    : symbols_(frequencies.size()) {
  const std::vector<Leaf> leaves = SortedLeaves(frequencies);
  for (const Leaf& leaf : leaves) leaves_.push_back(leaf.symbol);
  if (leaves.empty()) return;
  // A tree of one leaf has depth 0, but its symbol needs a code of one bit.
  const std::vector<std::size_t> depths =
      leaves.size() == 1 ? std::vector<std::size_t>{1} : Depths(leaves);
  count_of_length_.resize(depths.front() + 1);
  for (const std::size_t depth : depths) ++count_of_length_[depth];
}

std::vector<std::uint8_t> HuffmanTree::Lengths(int max_length) const {
  const std::vector<std::size_t> counts =
      LimitLengths(count_of_length_, static_cast<std::size_t>(max_length));
  std::vector<std::uint8_t> lengths(symbols_);
  auto leaf = leaves_.begin();
  for (std::size_t length = counts.size() - 1; length > 0; --length) {
    for (std::size_t i = 0; i < counts[length]; ++i) {
      lengths[*leaf++] = static_cast<std::uint8_t>(length);
    }
  }
  return lengths;
}

// Codes of the same length are consecutive, in the order of their symbols.
std::uint64_t CodedNbits(const std::vector<std::uint64_t>& frequencies,
                         const std::vector<std::uint8_t>& lengths) {
  return std::inner_product(frequencies.begin(), frequencies.end(), lengths.begin(),
                            std::uint64_t{0});
}

std::vector<HuffmanCode> CanonicalCodes(const std::vector<std::uint8_t>& lengths) {
  std::array<std::uint32_t, kLongest + 2> next{};
  for (const std::uint8_t length : lengths) {
    if (length != 0) ++next[length + 1U];
  }
  for (std::size_t length = 1; length < next.size(); ++length) {
    next[length] = (next[length] + next[length - 1]) << 1;
  }
  // next[l] is now the first code of length l.
  std::vector<HuffmanCode> codes(lengths.size());
  for (std::size_t s = 0; s < codes.size(); ++s) {
    const std::uint8_t length = lengths[s];
    if (length != 0) codes[s] = {Reversed(next[length]++, length), length};
  }
  return codes;
}

}  // namespace pyckpt
