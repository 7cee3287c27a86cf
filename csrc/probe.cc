#include "probe.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace pyckpt {
namespace {

constexpr std::size_t kStretchNbytes = std::size_t{64} << 10;  // one sample each
constexpr std::size_t kWindowNbytes = 1024;                    // of a sample
constexpr std::size_t kRepeatsPercent = 6;  // of the positions; below, literals alone do better

using Word = std::uint32_t;

Word WordAt(const std::uint8_t* p) {
  Word word = 0;
  std::memcpy(&word, p, sizeof word);
  return word;
}

std::size_t CountNear(const std::uint8_t* p, std::size_t nbytes) {
  constexpr int kHashBits = 10;
  // Positions plus one; 0 is "not seen".
  std::array<std::uint16_t, std::size_t{1} << kHashBits> seen{};
  std::size_t repeats = 0;
  for (std::size_t i = 0; i + sizeof(Word) <= nbytes; ++i) {
    const Word word = WordAt(p + i);
    std::uint16_t& last = seen[(word * 0x9E3779B1U) >> (32 - kHashBits)];
    if (last != 0 && WordAt(p + last - 1) == word) ++repeats;
    last = static_cast<std::uint16_t>(i + 1);
  }
  return repeats;
}

}  // namespace

bool HasRepeats(Span bytes) {
  std::size_t repeats = 0;
  std::size_t looked_at = 0;
  for (std::size_t start = 0; start < bytes.nbytes; start += kStretchNbytes) {
    const Span rest = {bytes.data + start, bytes.nbytes - start};
    const std::size_t window = std::min(kWindowNbytes, rest.nbytes);
    repeats += CountNear(rest.data, window);
    looked_at += window;
  }
  return repeats * 100 > looked_at * kRepeatsPercent;
}

}  // namespace pyckpt
