#include "probe.h"

#include <algorithm>
#include <cstring>

namespace pyckpt {
namespace {

constexpr std::size_t kRunNbytes = 4096;      // one run of the sample
constexpr std::size_t kRunEvery = 16;         // one run in so many is taken
constexpr std::size_t kWindowNbytes = 2048;   // where repeats are looked for
constexpr std::size_t kWindows = 8;           // spread over the chunk
constexpr std::uint64_t kRepeatsPercent = 6;  // below, literals alone do better

std::size_t CountRepeats(const std::uint8_t* p, std::size_t nbytes) {
  constexpr int kHashBits = 12;
  // Positions plus one; 0 is "not seen".
  std::array<std::uint16_t, std::size_t{1} << kHashBits> seen{};
  std::size_t repeats = 0;
  for (std::size_t i = 0; i + 4 <= nbytes; ++i) {
    std::uint32_t word = 0;
    std::memcpy(&word, p + i, sizeof word);
    std::uint16_t& last = seen[(word * 0x9E3779B1U) >> (32 - kHashBits)];
    if (last != 0 && std::memcmp(p + last - 1, p + i, sizeof word) == 0) ++repeats;
    last = static_cast<std::uint16_t>(i + 1);
  }
  return repeats;
}

}  // namespace

Histogram SampleHistogram(Span bytes) {
  // Four tables, so that equal neighbours do not wait for one counter.
  std::array<Histogram, 4> counts{};
  const std::size_t stride =
      bytes.nbytes <= kRunNbytes * kRunEvery ? kRunNbytes : kRunNbytes * kRunEvery;
  for (std::size_t start = 0; start < bytes.nbytes; start += stride) {
    const std::size_t end = std::min(bytes.nbytes, start + kRunNbytes);
    std::size_t i = start;
    for (; i + 4 <= end; i += 4) {
      ++counts[0][bytes.data[i]];
      ++counts[1][bytes.data[i + 1]];
      ++counts[2][bytes.data[i + 2]];
      ++counts[3][bytes.data[i + 3]];
    }
    for (; i < end; ++i) ++counts[0][bytes.data[i]];
  }
  Histogram sum{};
  for (std::size_t s = 0; s < sum.size(); ++s) {
    sum[s] = counts[0][s] + counts[1][s] + counts[2][s] + counts[3][s];
  }
  return sum;
}

bool HasRepeats(Span bytes) {
  const std::size_t stride = std::max(kWindowNbytes, bytes.nbytes / kWindows);
  std::size_t repeats = 0;
  std::size_t looked_at = 0;
  for (std::size_t start = 0; start < bytes.nbytes; start += stride) {
    const std::size_t nbytes = std::min(kWindowNbytes, bytes.nbytes - start);
    repeats += CountRepeats(bytes.data + start, nbytes);
    looked_at += nbytes;
  }
  return repeats * 100 > looked_at * kRepeatsPercent;
}

bool HasPositions(Span bytes) {
  constexpr std::size_t kResidues = 4;
  std::array<Histogram, kResidues> counts{};
  const std::size_t stride =
      bytes.nbytes <= kRunNbytes * kRunEvery ? kRunNbytes : kRunNbytes * kRunEvery;
  for (std::size_t start = 0; start < bytes.nbytes; start += stride) {
    const std::size_t end = std::min(bytes.nbytes, start + kRunNbytes);
    for (std::size_t i = start; i < end; ++i) ++counts[i % kResidues][bytes.data[i]];
  }
  // How often two bytes drawn at random are equal: among those of one residue,
  // and among all.
  std::uint64_t apart = 0;
  std::uint64_t together = 0;
  for (std::size_t s = 0; s < Histogram().size(); ++s) {
    std::uint64_t all = 0;
    for (const Histogram& count : counts) {
      apart += kResidues * std::uint64_t{count[s]} * count[s];
      all += count[s];
    }
    together += all * all;
  }
  return apart > together + together / 4;
}

}  // namespace pyckpt
