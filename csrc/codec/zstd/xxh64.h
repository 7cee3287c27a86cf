// XXH64 with seed 0, the checksum of zstd's frames. libzstd computes it too, but does not export
// it.
#ifndef PYCKPT_CODEC_ZSTD_XXH64_H_
#define PYCKPT_CODEC_ZSTD_XXH64_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace pyckpt::zstd {

class Xxh64 {
 public:
  void Add(Span bytes);
  // Of all bytes so far.
  std::uint64_t Digest() const;

 private:
  static constexpr std::size_t kStripeNbytes = 32;
  static constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87U;
  static constexpr std::uint64_t kPrime2 = 0xC2B2AE3D27D4EB4FU;

  std::array<std::uint64_t, 4> lanes_ = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
  std::array<std::uint8_t, kStripeNbytes> rest_{};  // bytes that do not fill a stripe yet
  std::uint64_t nbytes_ = 0;
};

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_XXH64_H_
