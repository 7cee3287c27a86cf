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

std::size_t CountRepeats(const std::uint8_t* p, std::size_t nbytes, std::size_t repeat_nbytes) {
  const std::uint32_t mask = 0xFFFFFFFFU >> (8 * (4 - repeat_nbytes));
  constexpr int kHashBits = 12;
  // Positions plus one; 0 is "not seen".
  std::array<std::uint16_t, std::size_t{1} << kHashBits> seen{};
  std::size_t repeats = 0;
  for (std::size_t i = 0; i + 4 <= nbytes; ++i) {
    std::uint32_t word = 0;
    std::memcpy(&word, p + i, sizeof word);
    std::uint16_t& last = seen[((word & mask) * 0x9E3779B1U) >> (32 - kHashBits)];
    if (last != 0) {
      std::uint32_t before = 0;
      std::memcpy(&before, p + last - 1, sizeof before);
      if (((before ^ word) & mask) == 0) ++repeats;
    }
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

bool HasRepeats(Span bytes, std::size_t repeat_nbytes) {
  const std::size_t stride = std::max(kWindowNbytes, bytes.nbytes / kWindows);
  std::size_t repeats = 0;
  std::size_t looked_at = 0;
  for (std::size_t start = 0; start < bytes.nbytes; start += stride) {
    const std::size_t nbytes = std::min(kWindowNbytes, bytes.nbytes - start);
    repeats += CountRepeats(bytes.data + start, nbytes, repeat_nbytes);
    looked_at += nbytes;
  }
  return repeats * 100 > looked_at * kRepeatsPercent;
}

bool HasFarRepeats(Span bytes) {
  constexpr std::size_t kStep = 8;
  constexpr std::size_t kStretch = 16;
  constexpr std::size_t kFar = 4096;
  constexpr int kSlotBits = 13;
  constexpr int kPickBits = 4;
  if (bytes.nbytes < kFar) return false;
  // Where a stretch was seen last, in steps plus one; 0 is "nowhere".
  std::array<std::uint32_t, std::size_t{1} << kSlotBits> seen{};
  std::size_t picked = 0;
  std::size_t far = 0;
  for (std::size_t at = 0; at + kStretch <= bytes.nbytes; at += kStep) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data + at, sizeof word);
    const std::uint64_t hash = word * 0x9E3779B97F4A7C15U;
    // The contents choose which stretches are remembered, so both or neither of
    // two equal ones are. Zeros are never chosen.
    constexpr std::uint64_t kAll = (1U << kPickBits) - 1;
    if (hash >> (64 - kPickBits) != kAll) continue;
    ++picked;
    std::uint32_t& last = seen[hash << kPickBits >> (64 - kSlotBits)];
    const std::size_t before = last == 0 ? at : (last - 1) * kStep;
    if (at - before >= kFar && std::memcmp(bytes.data + before, bytes.data + at, kStretch) == 0) {
      ++far;
    }
    last = static_cast<std::uint32_t>(at / kStep + 1);
  }
  return far * 100 > picked * kRepeatsPercent;
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
