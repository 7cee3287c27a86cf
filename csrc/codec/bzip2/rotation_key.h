// What the block sort knows of a rotation while it looks for its place: one word.
#ifndef PYCKPT_CODEC_BZIP2_ROTATION_KEY_H_
#define PYCKPT_CODEC_BZIP2_ROTATION_KEY_H_

#include <cstddef>
#include <cstdint>

namespace pyckpt::bzip2 {

// From the highest bit down: the bits of the rotation that are compared next, the index at which
// the rotation starts, the byte before the rotation.
using RotationKey = std::uint64_t;

inline constexpr int kBeforeBits = 8;
inline constexpr int kIndexBits = 20;
inline constexpr int kRowBits = kIndexBits + kBeforeBits;
inline constexpr int kComparedBits = 64 - kRowBits;
inline constexpr RotationKey kRowMask = (RotationKey{1} << kRowBits) - 1;

inline RotationKey MakeKey(std::uint64_t compared, std::size_t index, std::uint8_t before) {
  return (compared & ~kRowMask) | index << kBeforeBits | before;
}
inline std::size_t IndexOf(RotationKey key) { return (key & kRowMask) >> kBeforeBits; }
inline std::uint8_t BeforeOf(RotationKey key) { return static_cast<std::uint8_t>(key); }
inline bool SameCompared(RotationKey a, RotationKey b) { return (a ^ b) <= kRowMask; }

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_ROTATION_KEY_H_
