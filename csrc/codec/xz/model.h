// LZMA's literal model: adaptive binary trees, and the constants of its range
// coder (the LZMA specification).
//
// A tree codes a byte bit by bit, from the top bit down. In memory it is 17 subtrees of 15 nodes:
// one for the upper half of the byte, and one for the lower half under each value of the upper
// half. So a subtree is one 32-byte vector. Node 1 is a subtree's root; nodes 2n and 2n + 1 are the
// children of node n; node 0 is unused.
#ifndef PYCKPT_CODEC_XZ_MODEL_H_
#define PYCKPT_CODEC_XZ_MODEL_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace pyckpt::xz {

// Probabilities of a 0, in 2048ths.
inline constexpr unsigned kProbabilityBits = 11;
inline constexpr unsigned kProbabilityOne = 1U << kProbabilityBits;
inline constexpr std::uint16_t kEven = kProbabilityOne / 2;

// After a 0, p becomes p - ((p - kTarget0) >> kAdaptation). After a 1, the same with 0 instead of
// kTarget0. This is exponential smoothing with LZMA's rounding.
inline constexpr unsigned kAdaptation = 5;
inline constexpr std::uint16_t kTarget0 = kProbabilityOne - (1U << kAdaptation) + 1;

// Every probability stays at least this far from 0 and from 2048, so a decision costs less than
// 6.05 bits.
inline constexpr unsigned kExtreme = (1U << kAdaptation) - 1;

// The range is shifted up by a byte when it falls below this. At most one
// shift follows a decision.
inline constexpr std::uint32_t kRenormalizeBelow = 1U << 24;

// LZMA's lc and lp; pb is 0. lc + lp is at most 4.
struct LiteralBits {
  std::uint32_t context;   // lc: top bits of the byte before
  std::uint32_t position;  // lp: low bits of the position
};

// The probabilities of a 0 for a byte's eight decisions, from the top bit down.
using ByteProbabilities = std::array<std::uint16_t, 8>;

using Subtree = std::array<std::uint16_t, 16>;
using Tree = std::array<Subtree, 17>;

// The adaptive state between two resets.
struct LiteralModel {
  static constexpr std::size_t kTrees = 16;  // 2^(lc + lp)

  alignas(32) std::array<Tree, kTrees> trees;
  std::uint32_t is_literal;  // the decision "no match", which precedes each byte

  void Reset() {
    for (Tree& tree : trees) {
      for (Subtree& subtree : tree) subtree.fill(kEven);
    }
    is_literal = kEven;
  }
};

// Returns the probabilities of byte's decisions, then adapts the tree to byte.
[[gnu::always_inline]] inline ByteProbabilities Learn(std::uint32_t byte, Tree* tree) {
  ByteProbabilities before{};
  std::size_t level = 0;
  for (Subtree* subtree : {tree->data(), tree->data() + 1 + (byte >> 4)}) {
    std::size_t node = 1;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, ++level) {
      const unsigned bit = byte >> (7 - level) & 1;
      std::uint16_t& probability = (*subtree)[node];
      before[level] = probability;
      const int target = bit != 0 ? 0 : int{kTarget0};
      probability =
          static_cast<std::uint16_t>(probability - ((probability - target) >> kAdaptation));
      node = 2 * node + bit;
    }
  }
  return before;
}

// The index of the tree for a byte that is at position and follows the byte previous.
inline std::size_t TreeIndex(LiteralBits bits, std::size_t position, std::uint32_t previous) {
  return (position & ((std::size_t{1} << bits.position) - 1)) << bits.context |
         previous >> (8 - bits.context);
}

// The new probability of "no match". That decision is always taken, so its probability only grows.
inline std::uint32_t NextIsLiteral(std::uint32_t probability) {
  return probability + ((kProbabilityOne - probability) >> kAdaptation);
}

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_MODEL_H_
