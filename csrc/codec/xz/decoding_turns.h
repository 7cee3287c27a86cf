// Decodes up to four lanes in turn, decision by decision, on any CPU.
#ifndef PYCKPT_CODEC_XZ_DECODING_TURNS_H_
#define PYCKPT_CODEC_XZ_DECODING_TURNS_H_

#include <cstddef>

#include "codec/xz/decoding_lane.h"

namespace pyckpt::xz {

// More lanes are not faster: their state does not fit the registers, nor their models the cache.
inline constexpr std::size_t kMostInTurn = 4;

// Decodes nbytes bytes of each of count lanes, 1 to kMostInTurn, none of them idle. CodeReach()
// says how much of the code it may read.
void DecodeInTurn(DecodingLane* const* lanes, std::size_t count, std::size_t nbytes);

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_DECODING_TURNS_H_
