// Encodes sixteen LZMA2 chunks of literals at once, with AVX2.
//
// A range coder is a chain of dependent steps, nine for each byte, so the CPU waits most of the
// time. But every LZMA2 chunk starts a new code, and the model, which continues from chunk to
// chunk, depends only on the raw bytes. So the model runs first, through all sixteen chunks in
// turn, and stores eight probabilities for each byte. Then sixteen range coders run side by side,
// one chunk per lane and eight lanes per vector.
#ifndef PYCKPT_CODEC_XZ_LANES_H_
#define PYCKPT_CODEC_XZ_LANES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/xz/model.h"
#include "codec/xz/range_coder.h"

namespace pyckpt::xz {

inline constexpr std::size_t kLanes = 16;

// Raw bytes of a lane. A multiple of eight, so that elements are aligned alike in every lane. Not a
// multiple of 4096, so that the lanes do not compete for the same cache set.
inline constexpr std::size_t kLaneNbytes = 16320;

// Rows of probabilities for a lane. A few are spare, also because of cache sets.
inline constexpr std::size_t kRowsPerLane = kLaneNbytes + 36;

// The longest code of a lane, in bytes. A byte takes nine decisions of at most 6.05 bits each, less
// than 7 bytes.
inline constexpr std::size_t kLaneCodeBound =
    kLaneNbytes * 7 + RangeCoder::kUnsettledNbytes + RangeCoder::kFlushNbytes;

// The codes of the lanes.
class LaneCodes {
 public:
  LaneCodes() : storage_(kLanes * kLaneCodeBound) {}

  std::uint8_t* code(std::size_t lane) { return storage_.data() + lane * kLaneCodeBound; }
  std::size_t& nbytes(std::size_t lane) { return nbytes_[lane]; }

 private:
  std::vector<std::uint8_t> storage_;
  std::array<std::size_t, kLanes> nbytes_{};
};

// Encodes full groups of lanes. May be used only if UseAvx2() is true. Takes 4.2 MB of memory.
class LaneEncoder {
 public:
  LaneEncoder() : rows_(kLanes * kRowsPerLane) {}

  // Encodes kLanes * kLaneNbytes bytes of raw. previous is the byte before them. Updates model.
  void Encode(const std::uint8_t* raw, std::uint32_t previous, LiteralBits bits,
              LiteralModel* model, LaneCodes* codes);

 private:
  std::vector<ByteProbabilities> rows_;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_LANES_H_
