#include "huffman.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace pyckpt {
namespace {

constexpr int kLongest = 15;
constexpr int kSymbolBits = 16;

// Huffman's own method: the two lightest are joined until one is left. Leaves
// come sorted and so do the joints, so the lightest is at the head of either.
// Returns the longest length.
int SetLengths(const std::vector<std::uint64_t>& frequencies, const std::vector<int>& leaves,
               std::vector<std::uint8_t>* lengths) {
  const std::size_t n = leaves.size();
  std::vector<std::uint64_t> weights(2 * n - 1);
  std::vector<std::size_t> parents(2 * n - 1);
  for (std::size_t i = 0; i < n; ++i) {
    weights[i] = frequencies[static_cast<std::size_t>(leaves[i])];
  }
  std::size_t leaf = 0;
  std::size_t joint = n;
  for (std::size_t next = n; next < weights.size(); ++next) {
    for (int child = 0; child < 2; ++child) {
      const bool take_leaf = leaf < n && (joint == next || weights[leaf] <= weights[joint]);
      const std::size_t taken = take_leaf ? leaf++ : joint++;
      weights[next] += weights[taken];
      parents[taken] = next;
    }
  }
  std::vector<int> depths(2 * n - 1);
  for (std::size_t i = depths.size() - 1; i-- > 0;) depths[i] = depths[parents[i]] + 1;
  for (std::size_t i = 0; i < n; ++i) {
    (*lengths)[static_cast<std::size_t>(leaves[i])] = static_cast<std::uint8_t>(depths[i]);
  }
  return depths.front();  // the rarest leaf's
}

// Shortens codes to max_length. The excess moves up the tree: a leaf above the limit goes one
// down and takes one from below the limit as its sibling, whose own sibling takes their parent's
// place. Then the rarest leaves get the longest codes. Not optimal, but by less than is worth
// the time of a method that is: only what is rare is too long.
void LimitLengths(const std::vector<int>& leaves, int max_length,
                  std::vector<std::uint8_t>* lengths) {
  const auto limit = static_cast<std::size_t>(max_length);
  std::vector<std::size_t> counts(limit + 1);
  // What the codes use up of all that there are, in codes of the limit's length.
  std::size_t used = 0;
  for (const int leaf : leaves) {
    const auto length = std::min<std::size_t>((*lengths)[static_cast<std::size_t>(leaf)], limit);
    ++counts[length];
    used += std::size_t{1} << (limit - length);
  }
  for (; used > std::size_t{1} << limit; --used) {
    std::size_t length = limit - 1;
    while (counts[length] == 0) --length;
    --counts[length];
    counts[length + 1] += 2;
    --counts[limit];
  }
  auto leaf = leaves.begin();
  for (std::size_t length = limit; length > 0; --length) {
    for (std::size_t i = 0; i < counts[length]; ++i) {
      (*lengths)[static_cast<std::size_t>(*leaf++)] = static_cast<std::uint8_t>(length);
    }
  }
}

std::uint16_t Reversed(std::uint32_t bits, int length) {
  bits = (bits & 0x5555) << 1 | (bits >> 1 & 0x5555);
  bits = (bits & 0x3333) << 2 | (bits >> 2 & 0x3333);
  bits = (bits & 0x0F0F) << 4 | (bits >> 4 & 0x0F0F);
  bits = (bits & 0x00FF) << 8 | bits >> 8;
  return static_cast<std::uint16_t>(bits >> (16 - length));
}

// Codes of one length are consecutive, in the order of their symbols.
void SetBits(std::vector<HuffmanCode>* codes) {
  std::array<std::uint32_t, kLongest + 2> next{};
  for (const HuffmanCode& c : *codes) {
    if (c.length != 0) ++next[c.length + 1U];
  }
  for (std::size_t length = 1; length < next.size(); ++length) {
    next[length] = (next[length] + next[length - 1]) << 1;
  }
  // next[l] is now twice the number of codes that shorter lengths use up.
  for (HuffmanCode& c : *codes) {
    if (c.length != 0) c.bits = Reversed(next[c.length]++, c.length);
  }
}

}  // namespace

std::vector<std::uint8_t> BuildHuffmanLengths(const std::vector<std::uint64_t>& frequencies,
                                              int max_length) {
  std::vector<std::uint8_t> lengths(frequencies.size());
  // Sorted by frequency, then symbol: one number holds both.
  std::vector<std::uint64_t> sorted;
  sorted.reserve(frequencies.size());
  for (std::size_t s = 0; s < frequencies.size(); ++s) {
    if (frequencies[s] != 0) sorted.push_back(frequencies[s] << kSymbolBits | s);
  }
  std::sort(sorted.begin(), sorted.end());
  std::vector<int> leaves(sorted.size());
  std::transform(sorted.begin(), sorted.end(), leaves.begin(), [](std::uint64_t leaf) {
    return static_cast<int>(leaf & ((std::uint64_t{1} << kSymbolBits) - 1));
  });
  if (leaves.size() == 1) lengths[static_cast<std::size_t>(leaves[0])] = 1;
  if (leaves.size() > 1 && SetLengths(frequencies, leaves, &lengths) > max_length) {
    LimitLengths(leaves, max_length, &lengths);
  }
  return lengths;
}

std::vector<HuffmanCode> BuildHuffman(const std::vector<std::uint64_t>& frequencies,
                                      int max_length) {
  const std::vector<std::uint8_t> lengths = BuildHuffmanLengths(frequencies, max_length);
  std::vector<HuffmanCode> codes(lengths.size());
  for (std::size_t s = 0; s < codes.size(); ++s) codes[s].length = lengths[s];
  SetBits(&codes);
  return codes;
}

}  // namespace pyckpt
