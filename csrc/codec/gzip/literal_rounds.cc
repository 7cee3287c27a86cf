#include "codec/gzip/literal_rounds.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "base/cpu.h"
#include "codec/gzip/format.h"

namespace pyckpt::gzip {
namespace {

// The highest bit of a word of code is no code. It marks the end: the zeros above it are as many as
// the bits that were taken.
constexpr std::uint64_t kMark = std::uint64_t{1} << 63;

// Codes of several lanes are looked up in turn. kGroup literals of each lane make a round.
template <std::size_t kCount, std::size_t kGroup>
[[gnu::always_inline]] inline std::size_t RoundsLoop(const std::uint8_t* file, LiteralLane* lanes,
                                                     std::uint64_t mask, std::size_t rounds) {
  std::array<std::uint64_t, kCount> bit;
  std::array<std::uint8_t*, kCount> out;
  std::array<std::uint64_t, kCount> word;
  std::array<std::uint32_t, kCount> entry;
  for (std::size_t k = 0; k < kCount; ++k) {
    bit[k] = lanes[k].bit;
    out[k] = lanes[k].out;
    entry[k] = 0;
  }
  const auto advance = [&](std::size_t k) {
    bit[k] += static_cast<unsigned>(__builtin_clzll(word[k]));
    out[k] += kGroup;
  };
  std::size_t round = 0;
  for (; round < rounds; ++round) {
#pragma GCC unroll 6
    for (std::size_t k = 0; k < kCount; ++k) {
      word[k] = LoadLe64(file + bit[k] / 8) >> bit[k] % 8 | kMark;
    }
#pragma GCC unroll 6
    for (std::size_t i = 0; i < kGroup; ++i) {
#pragma GCC unroll 6
      for (std::size_t k = 0; k < kCount; ++k) {
        entry[k] = lanes[k].table[word[k] & mask];
        word[k] >>= entry[k] & LiteralTable::kLengthMask;
        out[k][i] = static_cast<std::uint8_t>(entry[k] >> LiteralTable::kLiteralShift);
      }
    }
    // What is no literal takes no bits, so it comes again until the last look-up of the round.
    std::uint32_t any = 0;
#pragma GCC unroll 6
    for (std::size_t k = 0; k < kCount; ++k) any |= entry[k];
    if (__builtin_expect(any & LiteralTable::kOther, 0) != 0) {
      for (std::size_t k = 0; k < kCount; ++k) {
        lanes[k].stopped = (entry[k] & LiteralTable::kOther) != 0;
        if (!lanes[k].stopped) advance(k);
      }
      ++round;
      break;
    }
#pragma GCC unroll 6
    for (std::size_t k = 0; k < kCount; ++k) advance(k);
  }
  for (std::size_t k = 0; k < kCount; ++k) {
    lanes[k].bit = bit[k];
    lanes[k].out = out[k];
  }
  return round;
}

using Rounds = std::size_t (*)(const std::uint8_t* file, LiteralLane* lanes, std::uint64_t mask,
                               std::size_t rounds);

// A round has 4, 5 or 6 literals.
constexpr std::size_t kFewestInRound = LiteralsInRound(kLongestInRounds);
constexpr std::size_t kGroups = kMostInRound - kFewestInRound + 1;

// By the number of lanes, and then by that of literals, with the fewest of both first.
using Kernels = std::array<std::array<Rounds, kGroups>, kLanes>;

template <typename Cpu, std::size_t kCount, std::size_t... kGroup>
constexpr std::array<Rounds, kGroups> KernelsForLanes(std::index_sequence<kGroup...> /*groups*/) {
  return {Cpu::template Run<kCount, kFewestInRound + kGroup>...};
}

template <typename Cpu, std::size_t... kCount>
constexpr Kernels KernelsFor(std::index_sequence<kCount...> /*counts*/) {
  return {KernelsForLanes<Cpu, kCount + 1>(std::make_index_sequence<kGroups>())...};
}

struct Portable {
  template <std::size_t kCount, std::size_t kGroup>
  static std::size_t Run(const std::uint8_t* file, LiteralLane* lanes, std::uint64_t mask,
                         std::size_t rounds) {
    return RoundsLoop<kCount, kGroup>(file, lanes, mask, rounds);
  }
};

#if defined(__x86_64__)
// The same loops. Shifts by a variable amount and the count of zeros are one instruction each.
struct Bmi2 {
  template <std::size_t kCount, std::size_t kGroup>
  [[gnu::target("bmi2,lzcnt")]] static std::size_t Run(const std::uint8_t* file, LiteralLane* lanes,
                                                       std::uint64_t mask, std::size_t rounds) {
    return RoundsLoop<kCount, kGroup>(file, lanes, mask, rounds);
  }
};
#endif

const Kernels& ChooseKernels() {
  static constexpr Kernels kPortable = KernelsFor<Portable>(std::make_index_sequence<kLanes>());
#if defined(__x86_64__)
  static constexpr Kernels kBmi2 = KernelsFor<Bmi2>(std::make_index_sequence<kLanes>());
  if (UseBmi2()) return kBmi2;
#endif
  return kPortable;
}

}  // namespace

void LiteralTable::Fill(const SymbolDecoder& code, unsigned nbits) {
  entries_[0] = kOther;
  nbits_ = 0;
  // Entries for longer codes are as those for shorter ones, but where codes of that length are.
  for (unsigned length = 1; length <= nbits; ++length) {
    Extend(length);
    code.ForEachOfLength(length, [&](std::size_t symbol, std::size_t bits) {
      if (symbol < kLiterals) {
        entries_[bits] = static_cast<std::uint16_t>(symbol << kLiteralShift | length);
      }
    });
  }
}

void LiteralTable::Extend(unsigned nbits) {
  for (; nbits_ < nbits; ++nbits_) {
    const std::size_t n = std::size_t{1} << nbits_;
    std::memcpy(entries_.data() + n, entries_.data(), n * sizeof entries_[0]);
  }
}

std::size_t DecodeLiteralRounds(const std::uint8_t* file, LiteralLane* lanes, std::size_t count,
                                unsigned nbits, std::size_t rounds) {
  static const Kernels& kKernels = ChooseKernels();
  for (std::size_t k = 0; k < count; ++k) lanes[k].stopped = false;
  const Rounds run = kKernels[count - 1][LiteralsInRound(nbits) - kFewestInRound];
  return run(file, lanes, (std::uint64_t{1} << nbits) - 1, rounds);
}

}  // namespace pyckpt::gzip
