// The end of the block sort: puts the bytes before a few rotations in the order of the rotations.
#ifndef PYCKPT_CODEC_BZIP2_FEW_KEYS_H_
#define PYCKPT_CODEC_BZIP2_FEW_KEYS_H_

#include <cstddef>
#include <cstdint>

#include "codec/bzip2/rotation_key.h"

namespace pyckpt::bzip2 {

// For up to this many keys, comparing all is faster than one more radix pass.
inline constexpr std::size_t kFewKeys = 48;
// Keys are read in eights. So up to this many after the last one must be readable.
inline constexpr std::size_t kSlackKeys = 7;
// The keys may only differ in this many of the compared bits, the lowest ones.
inline constexpr int kFewKeysBits = 30;

// Writes the bytes before the rotations of n keys, 1 to kFewKeys, to out, in the order of the keys.
// Returns false if two of them are equal in the compared bits. Then the bytes of out are
// unspecified. out[n] is also written.
using EmitFewKeys = bool (*)(const RotationKey* keys, std::size_t n, std::uint8_t* out);

// The fastest one for this CPU.
EmitFewKeys ChooseEmitFewKeys();

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_FEW_KEYS_H_
