#include "codec/bzip2/mtf.h"

#include <cstring>

#include "base/cpu.h"

namespace pyckpt::bzip2 {
namespace {

constexpr std::size_t kBytes = 256;
// Places in the list are signed bytes, and the front is the lowest. Every CPU can compare vectors
// of signed bytes.
constexpr std::int8_t kFront = -128;

// As many signed bytes as one register holds.
using Lane16 = std::int8_t __attribute__((vector_size(16)));
using Lane32 = std::int8_t __attribute__((vector_size(32)));

// Each byte's place in the list.
using Places = std::array<std::uint8_t, kBytes>;

// The new place of a byte when the one at from_place moves to the front.
std::int8_t PlaceAfter(std::int8_t place, std::int8_t from_place) {
  return static_cast<std::int8_t>(place + (place < from_place ? 1 : 0));
}

// Replaces each byte by its rank. Bytes that were before it in the list move one place back. For
// that all 256 places are compared at once, because in noise the rank is large and cannot be
// predicted. Two bytes share one pass over the places; the places of these two are set afterwards.
template <typename Lane>
[[gnu::always_inline]] inline void RankLoop(std::uint8_t* bytes, std::size_t nbytes,
                                            Places places) {
  for (std::size_t i = 0; i < nbytes; i += 2) {
    const bool has_second = i + 1 < nbytes;
    const std::uint8_t a = bytes[i];
    const std::uint8_t b = has_second ? bytes[i + 1] : a;
    const auto place_a = static_cast<std::int8_t>(places[a]);
    const auto old_place_b = static_cast<std::int8_t>(places[b]);
    const std::int8_t place_b = a == b ? kFront : PlaceAfter(old_place_b, place_a);
    bytes[i] = static_cast<std::uint8_t>(place_a - kFront);
    if (has_second) bytes[i + 1] = static_cast<std::uint8_t>(place_b - kFront);
    if (place_a == kFront && place_b == kFront) continue;
#pragma GCC unroll 16
    for (std::size_t l = 0; l < kBytes; l += sizeof(Lane)) {
      Lane lane{};
      std::memcpy(&lane, &places[l], sizeof lane);
      lane -= lane < place_a;
      lane -= lane < place_b;
      std::memcpy(&places[l], &lane, sizeof lane);
    }
    places[a] = static_cast<std::uint8_t>(kFront + 1);
    places[b] = static_cast<std::uint8_t>(kFront);
  }
}

void RankPortable(std::uint8_t* bytes, std::size_t nbytes, const Places& initial) {
  RankLoop<Lane16>(bytes, nbytes, initial);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] void RankAvx2(std::uint8_t* bytes, std::size_t nbytes,
                                      const Places& initial) {
  RankLoop<Lane32>(bytes, nbytes, initial);
}
#endif

void Rank(std::uint8_t* bytes, std::size_t nbytes, const Places& initial) {
#if defined(__x86_64__)
  if (UseAvx2()) return RankAvx2(bytes, nbytes, initial);
#endif
  RankPortable(bytes, nbytes, initial);
}

// Writes a run's length in base two with the digits 1 (RUNA) and 2 (RUNB), lowest first. Returns
// the end.
std::uint16_t* PutRun(std::size_t length, std::uint16_t* out) {
  for (; length > 0; length = (length - 1) / 2) *out++ = length % 2 == 1 ? 0 : 1;
  return out;
}

}  // namespace

void RankBlock(std::uint8_t* transform, std::size_t nbytes, RankedBlock* out) {
  out->used.fill(false);
  for (std::size_t i = 0; i < nbytes; ++i) out->used[transform[i]] = true;
  // Bytes that occur start at the front, in ascending order. The others come after them and never
  // move to the front.
  Places places{};
  std::size_t used = 0;
  std::size_t unused = kBytes;
  for (std::size_t b = 0; b < kBytes; ++b) {
    const std::size_t place = out->used[b] ? used++ : --unused;
    places[b] = static_cast<std::uint8_t>(static_cast<int>(place) + kFront);
  }
  Rank(transform, nbytes, places);

  if (out->symbols.size() < nbytes + 1) out->symbols.resize(nbytes + 1);
  std::uint16_t* to = out->symbols.data();
  std::size_t run = 0;
  for (std::size_t i = 0; i < nbytes; ++i) {
    const std::uint8_t rank = transform[i];
    if (rank == 0) {
      ++run;
      continue;
    }
    if (run != 0) to = PutRun(run, to);
    run = 0;
    *to++ = static_cast<std::uint16_t>(rank + 1);
  }
  to = PutRun(run, to);
  *to++ = static_cast<std::uint16_t>(used + 1);
  out->alphabet = used + 2;
  out->count = static_cast<std::size_t>(to - out->symbols.data());
}

}  // namespace pyckpt::bzip2
