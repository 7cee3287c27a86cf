// A lane: one LZMA2 block of literals that is being decoded, between two of its bytes.
//
// Decoding is a chain of dependent steps, and the CPU mostly waits. So kernels decode several lanes
// at once, in turn (decoding_turns.h) or in vectors (decoding_vectors.h). Any kernel can continue
// what another one has begun. Kernels do not check anything while they run: what is wrong with the
// code is seen when a chunk is complete (lane_feeder.h).
#ifndef PYCKPT_CODEC_XZ_DECODING_LANE_H_
#define PYCKPT_CODEC_XZ_DECODING_LANE_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/xz/model.h"

namespace pyckpt::xz {

// The adaptive trees, cut into subtrees of three, three and two levels. A subtree's node 1 is its
// root; nodes 2n and 2n + 1 are the children of node n; node 0 is unused. The subtree of a byte's
// next decisions has the index 8 * i + d: i is that of the subtree before, d are the decisions in
// it. An upper subtree has the index of the tree.
struct DecodingModel {
  static constexpr std::size_t kTrees = 16;  // 2^(lc + lp)

  alignas(64) std::array<std::array<std::uint16_t, 8>, kTrees> upper;
  std::array<std::array<std::uint16_t, 8>, 8 * kTrees> middle;
  std::array<std::array<std::uint16_t, 4>, 64 * kTrees> lower;

  void Reset() {
    for (auto& subtree : upper) subtree.fill(kEven);
    for (auto& subtree : middle) subtree.fill(kEven);
    for (auto& subtree : lower) subtree.fill(kEven);
  }
};

struct DecodingLane {
  std::uint32_t range = 0;
  std::uint32_t code = 0;              // LZMA's name for what is read by the range
  const std::uint8_t* next = nullptr;  // the first byte that is not in code yet

  std::uint8_t* out = nullptr;  // where the next byte goes; null if the lane is idle
  std::size_t position = 0;     // of that byte in the block
  std::uint32_t previous = 0;   // the byte before it

  LiteralBits bits{0, 0};
  std::uint32_t is_literal = kEven;  // the probability of "no match"
  bool has_match = false;            // set if a decision was "match". The bytes are then wrong.
  DecodingModel model;
};

// A byte takes nine decisions. Each shifts the code by at most one byte.
inline constexpr std::size_t kMostCodePerByte = 9;

// A kernel that decodes nbytes more bytes may read this many bytes from next on.
constexpr std::size_t CodeReach(std::size_t nbytes) { return kMostCodePerByte * (nbytes + 1); }

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_DECODING_LANE_H_
