// Numbers of the zstd format (RFC 8878).
#ifndef PYCKPT_CODEC_ZSTD_FORMAT_H_
#define PYCKPT_CODEC_ZSTD_FORMAT_H_

#include <cstddef>
#include <cstdint>

namespace pyckpt::zstd {

inline constexpr std::uint32_t kFrameMagic = 0xFD2FB528;
// The magic of a frame that decoders skip. The lowest four bits may have any value.
inline constexpr std::uint32_t kSkippableMagic = 0x184D2A50;
inline constexpr std::size_t kSkippableHeaderNbytes = 8;

// Raw bytes of a block at most.
inline constexpr std::size_t kMostInBlock = std::size_t{128} << 10;
inline constexpr std::size_t kBlockHeaderNbytes = 3;

inline constexpr std::size_t kByteValues = 256;
inline constexpr int kLongestLiteralCode = 11;  // in bits

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_FORMAT_H_
