#include "codec/bzip2/mtf.h"

#include <algorithm>
#include <cstring>

#include "base/cpu.h"

namespace pyckpt::bzip2 {
namespace {

constexpr std::size_t kBytes = 256;
constexpr std::size_t kWordBits = 64;

// As many bytes as one register holds.
using Lanes16 = std::uint8_t __attribute__((vector_size(16)));
using Lanes32 = std::uint8_t __attribute__((vector_size(32)));

// SSE2 has no instruction for this.
struct CountByAdding {
  static std::uint64_t Count(std::uint64_t word) {
    word -= word >> 1 & 0x5555555555555555;
    word = (word & 0x3333333333333333) + (word >> 2 & 0x3333333333333333);
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F;
    return word * 0x0101010101010101 >> 56;
  }
};

struct CountByPopcnt {
  [[gnu::always_inline]] static std::uint64_t Count(std::uint64_t word) {
    return static_cast<std::uint64_t>(__builtin_popcountll(word));
  }
};

// The move-to-front list, as times instead of places. Each byte that occurs has the time of its
// last occurrence, and a byte's rank is the number of later times. No time is given twice, so a bit
// for each time says whether it is still the last one of its byte. Bits of the future are set. The
// counts say how many bits are set before each word of bits, modulo 256. So a rank takes one word
// and one count, whatever it is, and a byte that moves to the front clears one bit and lowers the
// counts behind it.
template <typename Lanes, typename BitCounter>
class Recency {
 public:
  // The bytes are given an order: place 0 is the front.
  [[gnu::always_inline]] Recency(const std::array<bool, kBytes>& used, std::size_t count)
      : back_(static_cast<std::uint8_t>(count - 1)) {
    std::size_t place = 0;
    for (std::size_t b = 0; b < kBytes; ++b) {
      if (used[b]) last_[b] = static_cast<std::uint16_t>(back_ - place++);
    }
    now_ = count;
    Start();
  }

  // Replaces bytes by their ranks.
  [[gnu::always_inline]] void Rank(std::uint8_t* bytes, std::size_t nbytes) {
    for (std::size_t i = 0; i < nbytes;) {
      if (now_ == kTimes) Renumber();
      const std::size_t end = std::min(nbytes, i + kTimes - now_);
      Lanes counts = counts_;
      alignas(Lanes) std::array<std::uint8_t, sizeof(Lanes)> count_of_word;
      std::size_t now = now_;
      for (; i < end; ++i, ++now) {
        const std::uint8_t byte = bytes[i];
        const std::size_t last = last_[byte];
        last_[byte] = static_cast<std::uint16_t>(now);
        // The counts are changed in a register, and stored for the look-up alone.
        std::memcpy(count_of_word.data(), &counts, sizeof counts);
        const std::size_t at = last / kWordBits;
        const std::uint64_t word = words_[at];
        const std::uint64_t bit = std::uint64_t{1} << last % kWordBits;
        words_[at] = word & ~bit;
        const std::uint64_t earlier = count_of_word[at] + BitCounter::Count(word & (bit - 1));
        bytes[i] = static_cast<std::uint8_t>(back_ - earlier);
        Lanes change{};
        std::memcpy(&change, kOneLessAfter[at].data(), sizeof change);
        counts += change;
      }
      counts_ = counts;
      now_ = now;
    }
  }

 private:
  static constexpr std::size_t kWords = sizeof(Lanes);
  static constexpr std::size_t kTimes = kWords * kWordBits;
  // For each word, -1 for all words after it.
  static constexpr auto kOneLessAfter = [] {
    alignas(Lanes) std::array<std::array<std::uint8_t, kWords>, kWords> changes{};
    for (std::size_t word = 0; word < kWords; ++word) {
      for (std::size_t after = word + 1; after < kWords; ++after) changes[word][after] = 255;
    }
    return changes;
  }();

  // All times have passed or will be given.
  [[gnu::always_inline]] void Start() {
    words_.fill(~std::uint64_t{0});
    for (std::size_t word = 0; word < kWords; ++word) {
      counts_[word] = static_cast<std::uint8_t>(word * kWordBits);
    }
  }

  // Gives the bytes the first times, in their order, so that the others are free again.
  [[gnu::always_inline]] void Renumber() {
    alignas(Lanes) std::array<std::uint8_t, kWords> count_of_word;
    std::memcpy(count_of_word.data(), &counts_, sizeof counts_);
    for (std::uint16_t& last : last_) {
      const std::size_t at = last / kWordBits;
      const std::uint64_t before = words_[at] & ((std::uint64_t{1} << last % kWordBits) - 1);
      last = static_cast<std::uint8_t>(count_of_word[at] + BitCounter::Count(before));
    }
    now_ = std::size_t{back_} + 1;
    Start();
  }

  std::uint8_t back_;  // the last place
  std::size_t now_;
  std::array<std::uint16_t, kBytes> last_{};
  std::array<std::uint64_t, kWords> words_;
  Lanes counts_;
};

void RankPortable(const std::array<bool, kBytes>& used, std::size_t count, std::uint8_t* bytes,
                  std::size_t nbytes) {
  Recency<Lanes16, CountByAdding>(used, count).Rank(bytes, nbytes);
}

#if defined(__x86_64__)
[[gnu::target("avx2,bmi,bmi2,popcnt")]] void RankAvx2(const std::array<bool, kBytes>& used,
                                                      std::size_t count, std::uint8_t* bytes,
                                                      std::size_t nbytes) {
  Recency<Lanes32, CountByPopcnt>(used, count).Rank(bytes, nbytes);
}
#endif

void Rank(const std::array<bool, kBytes>& used, std::size_t count, std::uint8_t* bytes,
          std::size_t nbytes) {
#if defined(__x86_64__)
  if (UseAvx2() && UseBmi2()) return RankAvx2(used, count, bytes, nbytes);
#endif
  RankPortable(used, count, bytes, nbytes);
}

bool HasZeroByte(std::uint64_t word) {
  return ((word - 0x0101010101010101) & ~word & 0x8080808080808080) != 0;
}

// Makes symbols of ranks.
class SymbolWriter {
 public:
  explicit SymbolWriter(std::uint16_t* out) : out_(out) {}

  void Put(std::uint8_t rank) {
    if (rank == 0) {
      ++run_;
      return;
    }
    EndRun();
    *out_++ = static_cast<std::uint16_t>(rank + 1);
  }

  // Eight ranks, none of them 0.
  void PutEight(const std::uint8_t* ranks) {
    using Eight = std::uint8_t __attribute__((vector_size(8)));
    using EightSymbols = std::uint16_t __attribute__((vector_size(16)));
    EndRun();
    Eight eight{};
    std::memcpy(&eight, ranks, sizeof eight);
    const EightSymbols symbols = __builtin_convertvector(eight, EightSymbols) + 1;
    std::memcpy(out_, &symbols, sizeof symbols);
    out_ += sizeof eight;
  }

  // Returns the end.
  std::uint16_t* PutLast(std::size_t symbol) {
    EndRun();
    *out_++ = static_cast<std::uint16_t>(symbol);
    return out_;
  }

 private:
  // Writes a run's length in base two with the digits 1 (RUNA) and 2 (RUNB), lowest first.
  void EndRun() {
    for (; run_ > 0; run_ = (run_ - 1) / 2) *out_++ = run_ % 2 == 1 ? 0 : 1;
  }

  std::uint16_t* out_;
  std::size_t run_ = 0;  // zeros that are not written yet
};

}  // namespace

void RankBlock(std::uint8_t* transform, std::size_t nbytes, RankedBlock* out) {
  out->used.fill(false);
  for (std::size_t i = 0; i < nbytes; ++i) out->used[transform[i]] = true;
  const auto used = static_cast<std::size_t>(std::count(out->used.begin(), out->used.end(), true));
  Rank(out->used, used, transform, nbytes);

  if (out->symbols.size() < nbytes + 1) out->symbols.resize(nbytes + 1);
  SymbolWriter writer(out->symbols.data());
  std::size_t i = 0;
  for (std::uint64_t word = 0; i + sizeof word <= nbytes; i += sizeof word) {
    std::memcpy(&word, transform + i, sizeof word);
    if (!HasZeroByte(word)) {
      writer.PutEight(transform + i);
      continue;
    }
    for (std::size_t k = 0; k < sizeof word; ++k) writer.Put(transform[i + k]);
  }
  for (; i < nbytes; ++i) writer.Put(transform[i]);
  const std::uint16_t* end = writer.PutLast(used + 1);
  out->alphabet = used + 2;
  out->count = static_cast<std::size_t>(end - out->symbols.data());
}

}  // namespace pyckpt::bzip2
