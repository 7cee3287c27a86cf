#include "codec/bzip2/few_keys.h"

#include <array>
#include <cstring>

#include "base/cpu.h"

namespace pyckpt::bzip2 {
namespace {

// As many signed integers as one register holds.
using Ints4 = std::int32_t __attribute__((vector_size(16)));
using Ints8 = std::int32_t __attribute__((vector_size(32)));

constexpr std::size_t kEight = 8;
constexpr std::int32_t kComparedMask = (std::int32_t{1} << kFewKeysBits) - 1;
constexpr std::int32_t kLargest = 0x7FFFFFFF;  // no key becomes as large
// What keys are combined with, so that those after the last one are the largest.
constexpr std::array<std::int32_t, 2 * kEight> kPadding = {
    0,        0,        0,        0,        0,        0,        0,        0,
    kLargest, kLargest, kLargest, kLargest, kLargest, kLargest, kLargest, kLargest};

template <typename Ints>
constexpr std::size_t kIntsIn = sizeof(Ints) / sizeof(std::int32_t);

// For each key in so many vectors, how many of kKeys keys are smaller.
template <typename Ints, std::size_t kVectors, std::size_t kKeys>
[[gnu::always_inline]] inline void CountSmaller(const std::int32_t* ours,
                                                const std::int32_t* others,
                                                std::uint32_t* smaller) {
  std::array<Ints, kVectors> mine;
  std::array<Ints, kVectors> counts;
  // Vector by vector: an array that is copied as a whole would stay in memory.
#pragma GCC unroll 4
  for (std::size_t v = 0; v < kVectors; ++v) {
    std::memcpy(&mine[v], ours + v * kIntsIn<Ints>, sizeof(Ints));
    counts[v] = Ints{};
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kKeys; ++i) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v) counts[v] -= mine[v] > others[i];
  }
#pragma GCC unroll 4
  for (std::size_t v = 0; v < kVectors; ++v) {
    std::memcpy(smaller + v * kIntsIn<Ints>, &counts[v], sizeof(Ints));
  }
}

// Each key's place is the number of smaller keys. This takes more comparisons than other methods,
// but no branch depends on noise. For the same reason there is code for each number of eights. The
// keys that fill the last eight all have place n. Keys that are equal have the same place, so the
// sum of all places tells whether there are any.
template <typename Ints, std::size_t kEights>
[[gnu::always_inline]] inline bool EmitEights(const RotationKey* keys, std::size_t n,
                                              std::uint8_t* out) {
  constexpr std::size_t kKeys = kEights * kEight;
  // The registers have room for so many vectors and their counts.
  constexpr std::size_t kAtOnce = 4;
  constexpr std::size_t kRest = kKeys / kIntsIn<Ints> % kAtOnce;
  constexpr std::size_t kRestAt = kKeys - kRest * kIntsIn<Ints>;

  alignas(Ints) std::array<std::int32_t, kKeys> compared;
  alignas(Ints) std::array<std::uint32_t, kKeys> places;
  const std::int32_t* padding = &kPadding[kKeys - n];
#pragma GCC unroll 8
  for (std::size_t eight = 0; eight < kKeys; eight += kEight) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kEight; ++i) {
      const auto key = static_cast<std::int32_t>(keys[eight + i] >> kRowBits & kComparedMask);
      compared[eight + i] = eight + kEight == kKeys ? key | padding[i] : key;
    }
  }
  for (std::size_t i = 0; i < kRestAt; i += kAtOnce * kIntsIn<Ints>) {
    CountSmaller<Ints, kAtOnce, kKeys>(&compared[i], compared.data(), &places[i]);
  }
  if constexpr (kRest != 0) {
    CountSmaller<Ints, kRest, kKeys>(&compared[kRestAt], compared.data(), &places[kRestAt]);
  }
  std::size_t sum = 0;
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kKeys; ++i) {
    sum += places[i];
    out[places[i]] = BeforeOf(keys[i]);
  }
  return sum == n * (n - 1) / 2 + (kKeys - n) * n;
}

template <typename Ints>
[[gnu::always_inline]] inline bool EmitByCounting(const RotationKey* keys, std::size_t n,
                                                  std::uint8_t* out) {
  static_assert(kFewKeys == 6 * kEight, "a case for each number of eights");
  switch ((n - 1) / kEight) {
    case 0:
      return EmitEights<Ints, 1>(keys, n, out);
    case 1:
      return EmitEights<Ints, 2>(keys, n, out);
    case 2:
      return EmitEights<Ints, 3>(keys, n, out);
    case 3:
      return EmitEights<Ints, 4>(keys, n, out);
    case 4:
      return EmitEights<Ints, 5>(keys, n, out);
    default:
      return EmitEights<Ints, 6>(keys, n, out);
  }
}

bool EmitPortable(const RotationKey* keys, std::size_t n, std::uint8_t* out) {
  return EmitByCounting<Ints4>(keys, n, out);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] bool EmitAvx2(const RotationKey* keys, std::size_t n, std::uint8_t* out) {
  return EmitByCounting<Ints8>(keys, n, out);
}
#endif

}  // namespace

EmitFewKeys ChooseEmitFewKeys() {
#if defined(__x86_64__)
  if (UseAvx2()) return EmitAvx2;
#endif
  return EmitPortable;
}

}  // namespace pyckpt::bzip2
