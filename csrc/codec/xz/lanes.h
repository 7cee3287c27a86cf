// Sixteen LZMA2 chunks of literals at once, with AVX2.
//
// One range coder is a chain of dependent steps, nine for each byte: a CPU
// waits most of the time. But every LZMA2 chunk starts a code of its own, and
// the model that links a chunk to those before it depends on the raw bytes
// alone. So the model runs first, through all sixteen chunks in turn, and notes
// the eight probabilities of each byte; then sixteen range coders run side by
// side, one chunk a lane, eight lanes in each vector.
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

// Raw bytes of a lane: a multiple of eight, so that elements keep their place,
// and not of 4096, so that the lanes' lines do not crowd one set of the cache.
inline constexpr std::size_t kLaneNbytes = 16320;

// Rows of probabilities kept for a lane: a few spare ones, again for the cache.
inline constexpr std::size_t kRowsPerLane = kLaneNbytes + 36;

// A byte takes nine decisions of at most 6.05 bits each.
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

// Encoder of whole groups of lanes. Needs UseAvx2().
class LaneEncoder {
 public:
  LaneEncoder() : rows_(kLanes * kRowsPerLane) {}

  // Encodes kLanes * kLaneNbytes of raw, which previous precedes, and leaves in
  // model what it has learnt.
  void Encode(const std::uint8_t* raw, std::uint32_t previous, LiteralBits bits,
              LiteralModel* model, LaneCodes* codes);

 private:
  std::vector<ByteProbabilities> rows_;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_LANES_H_
