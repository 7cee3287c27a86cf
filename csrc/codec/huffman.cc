#include "codec/huffman.h"

#include <algorithm>
#include <array>
#include <limits>

namespace pyckpt {
namespace {

constexpr std::size_t kLongest = 15;

struct Leaf {
  std::uint64_t frequency;
  std::uint16_t symbol;
};

// The rarest first, of equals the first symbol. By one byte of the frequency after another:
// half of all comparisons would be mispredicted.
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

// Huffman's own method: the two lightest are joined until one is left. Leaves come sorted and so
// do the joints, so the lightest is at the head of either. Returns the depth of each leaf, of
// which there are two at least.
std::vector<std::size_t> Depths(const std::vector<Leaf>& leaves) {
  constexpr std::uint64_t kNone = std::numeric_limits<std::uint64_t>::max();
  const std::size_t n = leaves.size();
  // Leaves, something that is never the lightest, joints; those yet to be made are not either.
  std::vector<std::uint64_t> weights(2 * n, kNone);
  std::vector<std::size_t> parents(2 * n);
  for (std::size_t i = 0; i < n; ++i) weights[i] = leaves[i].frequency;
  std::size_t leaf = 0;
  std::size_t joint = n + 1;
  const auto take = [&](std::size_t parent) {
    // No branch: which of them is lighter cannot be foretold.
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

// How many codes have each length once none is longer than limit. The excess moves up the tree: a
// leaf above the limit goes one down and takes one from below the limit as its sibling, whose own
// sibling takes their parent's place. Not optimal, but by less than is worth the time of a method
// that is: only what is rare is too long.
std::vector<std::size_t> LimitLengths(const std::vector<std::size_t>& unlimited,
                                      std::size_t limit) {
  std::vector<std::size_t> counts(limit + 1);
  // What the codes use up of all that there are, in codes of the limit's length.
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
  // A tree of one leaf is a root: that leaf gets a code nevertheless.
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

// Codes of one length are consecutive, in the order of their symbols.
std::vector<HuffmanCode> CanonicalCodes(const std::vector<std::uint8_t>& lengths) {
  std::array<std::uint32_t, kLongest + 2> next{};
  for (const std::uint8_t length : lengths) {
    if (length != 0) ++next[length + 1U];
  }
  for (std::size_t length = 1; length < next.size(); ++length) {
    next[length] = (next[length] + next[length - 1]) << 1;
  }
  // next[l] is now twice the number of codes that shorter lengths use up.
  std::vector<HuffmanCode> codes(lengths.size());
  for (std::size_t s = 0; s < codes.size(); ++s) {
    const std::uint8_t length = lengths[s];
    if (length != 0) codes[s] = {Reversed(next[length]++, length), length};
  }
  return codes;
}

}  // namespace pyckpt
