// Decodes sixteen lanes side by side in AVX2 vectors. Idle lanes cost as much as others.
#ifndef PYCKPT_CODEC_XZ_DECODING_VECTORS_H_
#define PYCKPT_CODEC_XZ_DECODING_VECTORS_H_

#include <array>
#include <cstddef>

#include "codec/xz/decoding_lane.h"

namespace pyckpt::xz {

inline constexpr std::size_t kVectorLanes = 16;
// Fewer lanes than this are decoded faster in turn.
inline constexpr std::size_t kFewestInVectors = 6;

// Decodes nbytes bytes, fewer than 2^28, of each lane that is not idle. CodeReach() says how much
// of the code it may read. Call this only if UseAvx2() (base/cpu.h).
void DecodeInVectors(std::array<DecodingLane, kVectorLanes>* lanes, std::size_t nbytes);

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_DECODING_VECTORS_H_
