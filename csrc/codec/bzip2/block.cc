#include "codec/bzip2/block.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "base/crc32.h"
#include "codec/bzip2/bits.h"
#include "codec/bzip2/rle.h"

namespace pyckpt::bzip2 {
namespace {

// A Huffman code and its length in bits.
struct Code {
  std::uint32_t bits;
  std::uint32_t length;
};
using CodeTable = std::array<Code, kMostSymbols>;

// Canonical codes: shorter ones first, those of the same length consecutive and in the order of
// their symbols.
CodeTable AssignCodes(const std::array<std::uint8_t, kMostSymbols>& lengths, std::size_t alphabet) {
  CodeTable table{};
  std::uint32_t next = 0;
  for (std::uint32_t length = 1; length <= kLongestCode; ++length) {
    for (std::size_t s = 0; s < alphabet; ++s) {
      if (lengths[s] == length) table[s] = {next++, length};
    }
    next <<= 1;
  }
  return table;
}

// An upper bound for the bits of a block without its symbols. A length takes at most two bits for
// each step and one bit to end.
std::uint64_t HeaderBound(const GroupCodes& codes) {
  constexpr std::uint64_t kFixedBits = 1024;
  return kFixedBits + codes.selectors.size() * kMostTables +
         kMostTables * kMostSymbols * (2 * kLongestCode + 1);
}

// Which of the 256 bytes occur. 16 bits say which groups of 16 bytes have any; then come 16 bits
// for each of those groups.
void PutUsed(const std::array<bool, 256>& used, BitWriter* bits) {
  constexpr std::size_t kPart = 16;
  std::uint64_t parts = 0;
  std::array<std::uint64_t, kPart> in_part{};
  for (std::size_t part = 0; part < kPart; ++part) {
    for (std::size_t i = 0; i < kPart; ++i) {
      in_part[part] = in_part[part] << 1 | (used[part * kPart + i] ? 1 : 0);
    }
    parts = parts << 1 | (in_part[part] != 0 ? 1 : 0);
  }
  bits->Put(parts, kPart);
  for (const std::uint64_t which : in_part) {
    if (which != 0) bits->Put(which, kPart);
  }
}

// Each selector as its rank in a move-to-front list, in unary: as many ones as the rank, then a
// zero.
void PutSelectors(const GroupCodes& codes, BitWriter* bits) {
  bits->Put(codes.tables, 3);
  bits->Put(codes.selectors.size(), 15);
  std::array<std::uint8_t, kMostTables> list{};
  std::iota(list.begin(), list.end(), std::uint8_t{0});
  for (const std::uint8_t selector : codes.selectors) {
    const auto at = std::find(list.begin(), list.end(), selector);
    const auto rank = static_cast<unsigned>(at - list.begin());
    std::rotate(list.begin(), at, at + 1);
    bits->Put((std::uint64_t{2} << rank) - 2, rank + 1);
  }
}

// The first length in 5 bits, then the steps to the length of each symbol: 10 is one more, 11 is
// one less, 0 ends the symbol.
void PutLengths(const GroupCodes& codes, std::size_t alphabet, BitWriter* bits) {
  for (std::size_t t = 0; t < codes.tables; ++t) {
    unsigned length = codes.lengths[t][0];
    bits->Put(length, 5);
    for (std::size_t s = 0; s < alphabet; ++s) {
      for (; length < codes.lengths[t][s]; ++length) bits->Put(2, 2);
      for (; length > codes.lengths[t][s]; --length) bits->Put(3, 2);
      bits->Put(0, 1);
    }
  }
}

void PutSymbols(const RankedBlock& block, const GroupCodes& codes, BitWriter* bits) {
  static_assert(3 * kLongestCode <= BitWriter::kMostBits, "three codes are put at once");
  std::array<CodeTable, kMostTables> tables{};
  for (std::size_t t = 0; t < codes.tables; ++t) {
    tables[t] = AssignCodes(codes.lengths[t], block.alphabet);
  }
  BitWriter writer = *bits;  // a copy, which stays in registers
  for (std::size_t group = 0; group < codes.selectors.size(); ++group) {
    const CodeTable& table = tables[codes.selectors[group]];
    const std::uint16_t* symbol = block.symbols.data() + group * kGroup;
    const std::uint16_t* end = block.symbols.data() + std::min((group + 1) * kGroup, block.count);
    for (; end - symbol >= 3; symbol += 3) {
      const Code a = table[symbol[0]];
      const Code b = table[symbol[1]];
      const Code c = table[symbol[2]];
      const std::uint64_t ab = std::uint64_t{a.bits} << b.length | b.bits;
      writer.Put(ab << c.length | c.bits, a.length + b.length + c.length);
    }
    for (; symbol != end; ++symbol) writer.Put(table[*symbol].bits, table[*symbol].length);
  }
  *bits = writer;
}

}  // namespace

BlockEncoder::Block BlockEncoder::Append(Span raw, std::size_t limit, Buffer* out,
                                         std::uint64_t* nbits) {
  std::uint8_t* runs = runs_.Reserve(limit + 1);  // one more for the sorter
  const CodedRuns coded = EncodeRuns(raw, limit, runs);
  const std::uint32_t crc = Crc32MsbFirst({raw.data, coded.raw_nbytes});
  const std::uint32_t origin = sorter_.Sort({runs, coded.coded_nbytes}, runs);
  RankBlock(runs, coded.coded_nbytes, &ranked_);
  ChooseCodes(ranked_, &codes_);

  const std::uint64_t bound = *nbits + HeaderBound(codes_) + codes_.nbits;
  BitWriter bits(out->Reserve(bound / 8 + 1 + BitWriter::kSlackNbytes), *nbits);
  bits.Put(kBlockMagic, kMagicBits);
  bits.Put(crc, 32);
  bits.Put(0, 1);  // not "randomised", an obsolete option
  bits.Put(origin, 24);
  PutUsed(ranked_.used, &bits);
  PutSelectors(codes_, &bits);
  PutLengths(codes_, ranked_.alphabet, &bits);
  PutSymbols(ranked_, codes_, &bits);
  *nbits = bits.nbits();
  return {coded.raw_nbytes, crc};
}

}  // namespace pyckpt::bzip2
