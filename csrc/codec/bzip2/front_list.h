// The move-to-front list of a bzip2 decoder.
#ifndef PYCKPT_CODEC_BZIP2_FRONT_LIST_H_
#define PYCKPT_CODEC_BZIP2_FRONT_LIST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pyckpt::bzip2 {

inline constexpr std::uint32_t kNear = 32;

using AllBytes = std::array<std::uint8_t, 256>;

// As many signed bytes as one register holds.
using Lane16 = std::int8_t __attribute__((vector_size(16)));
using Lane32 = std::int8_t __attribute__((vector_size(32)));

// In noise all ranks are equally likely. A loop whose length depends on the rank would be
// mispredicted each time, and a loop byte by byte would be slow. So bytes are moved a lane at a
// time, in one of a few fixed widths.
template <typename Lane>
class FrontList {
 public:
  explicit FrontList(const AllBytes& bytes) {
    std::memcpy(lanes_.data(), bytes.data(), bytes.size());
  }

  std::uint8_t front() const { return byte_at(0); }

  // Moves the byte at rank (below 256) to the front and returns it. near says whether most ranks
  // are below kNear; it only matters for speed.
  [[gnu::always_inline]] std::uint8_t Take(std::uint32_t rank, bool near) {
    const std::uint8_t byte = byte_at(rank);
    if ((near || kHasWidths) && rank < sizeof(Lane)) {
      MoveAmong<1>(rank, byte, Indexes());
    } else if (kHasWidths && rank < 4 * sizeof(Lane)) {
      MoveAmong<4>(rank, byte, Indexes());
    } else {
      MoveAmong<kLanes>(rank, byte, Indexes());
    }
    return byte;
  }

 private:
  static constexpr std::size_t kLanes = 256 / sizeof(Lane);
  // To move a few lanes too many costs less than to be mispredicted. So if there are only a few,
  // all of them are moved, unless near ranks are expected.
  static constexpr bool kHasWidths = kLanes > 8;
  using Indexes = std::make_index_sequence<sizeof(Lane)>;

  [[gnu::always_inline]] std::uint8_t byte_at(std::size_t rank) const {
    return reinterpret_cast<const std::uint8_t*>(lanes_.data())[rank];
  }

  // Puts byte in front of the others up to rank, all in the first kAmong lanes. Only these are
  // written.
  template <std::size_t kAmong, std::size_t... kIndexes>
  [[gnu::always_inline]] void MoveAmong(std::uint32_t rank, std::uint8_t byte,
                                        std::index_sequence<kIndexes...> /*indexes*/) {
    // Places are signed bytes, because every CPU can compare vectors of these.
    constexpr int kFront = -128;
    const Lane last = Lane{} + static_cast<std::int8_t>(rank + kFront);
    Lane before = Lane{} + static_cast<std::int8_t>(byte);
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kAmong; ++i) {
      constexpr Lane kPlaces = {static_cast<std::int8_t>(kIndexes + kFront)...};
      // The same as their sum, which overflows in half of the lanes.
      const Lane places = kPlaces ^ static_cast<std::int8_t>(i * sizeof(Lane));
      const Lane lane = lanes_[i];
      // The lane moved one place back. Its first byte becomes the last byte of the one before.
      Lane moved{};
#if defined(__SSE2__)
      if constexpr (sizeof(Lane) == sizeof(__m128i)) {
        // Without SSSE3, compilers turn the shuffle below into code that goes byte by byte.
        moved = reinterpret_cast<Lane>(
            _mm_or_si128(_mm_slli_si128(reinterpret_cast<__m128i>(lane), 1),
                         _mm_srli_si128(reinterpret_cast<__m128i>(before), sizeof(Lane) - 1)));
      } else
#endif
      {
        moved = __builtin_shufflevector(before, lane, (sizeof(Lane) - 1 + kIndexes)...);
      }
      lanes_[i] = places > last ? lane : moved;
      before = lane;
    }
  }

  std::array<Lane, kLanes> lanes_;
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_FRONT_LIST_H_
