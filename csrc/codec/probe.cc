#include "codec/probe.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace pyckpt {
namespace {

constexpr std::size_t kStretchNbytes = std::size_t{64} << 10;  // one window is sampled in each
constexpr std::size_t kWindowNbytes = 1024;                    // of one sample
// Of the positions. With fewer repeats, literals alone do better.
constexpr std::size_t kRepeatsPercent = 6;

using Word = std::uint32_t;

Word WordAt(const std::uint8_t* p) {
  Word word = 0;
  std::memcpy(&word, p, sizeof word);
  return word;
}

std::size_t CountNear(const std::uint8_t* p, std::size_t nbytes, std::size_t repeat_nbytes) {
  const Word mask = ~Word{0} >> (8 * (sizeof(Word) - repeat_nbytes));
  constexpr int kHashBits = 10;
  // Positions plus one; 0 is "not seen".
  std::array<std::uint16_t, std::size_t{1} << kHashBits> seen{};
  std::size_t repeats = 0;
  for (std::size_t i = 0; i + sizeof(Word) <= nbytes; ++i) {
    const Word word = WordAt(p + i);
    std::uint16_t& last = seen[((word & mask) * 0x9E3779B1U) >> (32 - kHashBits)];
    if (last != 0 && ((WordAt(p + last - 1) ^ word) & mask) == 0) ++repeats;
    last = static_cast<std::uint16_t>(i + 1);
  }
  return repeats;
}

}  // namespace

bool HasRepeats(Span bytes, std::size_t repeat_nbytes) {
  std::size_t repeats = 0;
  std::size_t looked_at = 0;
  for (std::size_t start = 0; start < bytes.nbytes; start += kStretchNbytes) {
    const Span rest = {bytes.data + start, bytes.nbytes - start};
    const std::size_t window = std::min(kWindowNbytes, rest.nbytes);
    repeats += CountNear(rest.data, window, repeat_nbytes);
    looked_at += window;
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
  // Where a stretch was seen last, in steps plus one; 0 is "not seen".
  std::array<std::uint32_t, std::size_t{1} << kSlotBits> seen{};
  std::size_t picked = 0;
  std::size_t far = 0;
  for (std::size_t at = 0; at + kStretch <= bytes.nbytes; at += kStep) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data + at, sizeof word);
    const std::uint64_t hash = word * 0x9E3779B97F4A7C15U;
    // Only stretches with certain hashes are remembered. So of two equal stretches, both are
    // remembered or neither. Zeros never are.
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
  std::array<std::array<std::uint32_t, 256>, kResidues> counts{};
  for (std::size_t start = 0; start < bytes.nbytes; start += kStretchNbytes) {
    const std::size_t end = std::min(bytes.nbytes, start + kStretchNbytes / 16);
    for (std::size_t i = start; i < end; ++i) ++counts[i % kResidues][bytes.data[i]];
  }
  // How often two bytes drawn at random are equal: among bytes of the same residue (apart), and
  // among all bytes (together). Both have the same scale.
  std::uint64_t apart = 0;
  std::uint64_t together = 0;
  for (std::size_t s = 0; s < counts[0].size(); ++s) {
    std::uint64_t all = 0;
    for (const auto& count : counts) {
      apart += kResidues * std::uint64_t{count[s]} * count[s];
      all += count[s];
    }
    together += all * all;
  }
  return apart > together + together / 4;
}

}  // namespace pyckpt
