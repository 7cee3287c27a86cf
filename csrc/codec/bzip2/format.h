// bzip2's constants, for encoder and decoder.
#ifndef PYCKPT_CODEC_BZIP2_FORMAT_H_
#define PYCKPT_CODEC_BZIP2_FORMAT_H_

#include <cstddef>
#include <cstdint>

namespace pyckpt::bzip2 {

inline constexpr std::uint64_t kBlockMagic = 0x314159265359;  // pi
inline constexpr std::uint64_t kEndMagic = 0x177245385090;    // the square root of pi
inline constexpr unsigned kMagicBits = 48;
inline constexpr unsigned kCrcBits = 32;

inline constexpr std::size_t kGroup = 50;  // symbols that use the same table
inline constexpr std::size_t kMostTables = 6;

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_FORMAT_H_
