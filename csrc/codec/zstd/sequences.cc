#include "codec/zstd/sequences.h"

#include <algorithm>
#include <array>

#include "codec/bit_writer.h"
#include "codec/zstd/fse.h"

namespace pyckpt::zstd {
namespace {

// A symbol, and the bits that follow it.
struct Coded {
  std::size_t symbol;
  std::size_t extra;
  std::uint64_t extra_nbits;
};

// Above these, there is one symbol for each power of two.
constexpr std::array<std::uint8_t, 25> kLengthBases = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48};
constexpr std::array<std::uint8_t, 25> kLengthNbits = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                                       0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4};

unsigned Log2(std::size_t x) { return 63U - static_cast<unsigned>(__builtin_clzll(x)); }

Coded OfLiterals(std::size_t nbytes) {
  constexpr std::size_t kFirstPower = 64;
  if (nbytes >= kFirstPower) {
    const unsigned log = Log2(nbytes);
    return {kLengthBases.size() + log - Log2(kFirstPower), nbytes - (std::size_t{1} << log), log};
  }
  const auto base = std::upper_bound(kLengthBases.begin(), kLengthBases.end(), nbytes) - 1;
  const auto symbol = static_cast<std::size_t>(base - kLengthBases.begin());
  return {symbol, nbytes - *base, kLengthNbits[symbol]};
}

Coded OfMatch(std::size_t nbytes) {
  constexpr std::size_t kShortest = 3;
  constexpr std::size_t kFirstPower = 128;
  constexpr std::size_t kFirstPowerSymbol = 43;
  // From 32 on, in units above kShortest.
  constexpr std::array<std::uint8_t, 11> kBases = {32, 34, 36, 38, 40, 44, 48, 56, 64, 80, 96};
  constexpr std::array<std::uint8_t, 11> kNbits = {1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5};
  const std::size_t above = nbytes - kShortest;
  if (above >= kFirstPower) {
    const unsigned log = Log2(above);
    return {kFirstPowerSymbol + log - Log2(kFirstPower), above - (std::size_t{1} << log), log};
  }
  if (above < kBases.front()) return {above, 0, 0};
  const auto base = std::upper_bound(kBases.begin(), kBases.end(), above) - 1;
  const auto index = static_cast<std::size_t>(base - kBases.begin());
  return {kBases.front() + index, above - *base, kNbits[index]};
}

Coded OfDistance(std::size_t distance) {
  constexpr std::size_t kRecent = 3;  // the lowest values stand for recent distances
  const std::size_t value = distance + kRecent;
  const unsigned log = Log2(value);
  return {log, value - (std::size_t{1} << log), log};
}

void PutExtra(const Coded& coded, BitWriter* writer) {
  writer->Put(coded.extra, coded.extra_nbits);
}

// Section 3.1.1.3.2.2.
const FseTable& LiteralsTable() {
  static const FseTable kTable({6, {4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1,  1,  2,  2,
                                    2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}});
  return kTable;
}
const FseTable& MatchTable() {
  static const FseTable kTable(
      {6, {1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,  1,  1,  1,  1,  1,  1, 1,
           1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}});
  return kTable;
}
const FseTable& DistanceTable() {
  static const FseTable kTable({5, {1, 1, 1, 1, 1, 1, 2, 2, 2, 1,  1,  1,  1,  1, 1,
                                    1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}});
  return kTable;
}

}  // namespace

std::uint8_t* WriteSequences(const std::vector<Sequence>& sequences, std::uint8_t* out) {
  const std::size_t n = sequences.size();
  if (n >= 128) *out++ = static_cast<std::uint8_t>(128 + (n >> 8));
  *out++ = static_cast<std::uint8_t>(n);
  if (n == 0) return out;
  *out++ = 0;  // predefined codes
  const Sequence& last = sequences.back();
  FseCoder literals(LiteralsTable(), OfLiterals(last.literal_nbytes).symbol);
  FseCoder matches(MatchTable(), OfMatch(last.match_nbytes).symbol);
  FseCoder distances(DistanceTable(), OfDistance(last.distance).symbol);
  BitWriter writer(out);
  for (auto sequence = sequences.rbegin(); sequence != sequences.rend(); ++sequence) {
    const Coded literal = OfLiterals(sequence->literal_nbytes);
    const Coded match = OfMatch(sequence->match_nbytes);
    const Coded distance = OfDistance(sequence->distance);
    if (sequence != sequences.rbegin()) {
      distances.Put(distance.symbol, &writer);
      matches.Put(match.symbol, &writer);
      literals.Put(literal.symbol, &writer);
    }
    PutExtra(literal, &writer);
    PutExtra(match, &writer);
    PutExtra(distance, &writer);
  }
  matches.Finish(&writer);
  distances.Finish(&writer);
  literals.Finish(&writer);
  writer.Put(1, 1);
  return writer.Align();
}

}  // namespace pyckpt::zstd
