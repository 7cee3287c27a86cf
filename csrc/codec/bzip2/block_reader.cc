#include "codec/bzip2/block_reader.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/cpu.h"
#include "base/error.h"
#include "codec/bzip2/front_list.h"

namespace pyckpt::bzip2 {
namespace {

constexpr std::uint32_t kMostSelectors = 18'002;
constexpr std::uint32_t kRunB = 1;  // symbols 0 (RUNA) and 1 (RUNB) are digits of run lengths
constexpr std::uint32_t kEqualBytes = 4;

Error Damaged(const char* what, std::uint64_t bit) {
  return Error::Corrupt(std::string("bzip2: a block has ") + what, bit / 8);
}

using CodeLengths = std::array<std::uint8_t, 258>;

// Whether most ranks of a code are near the front. A symbol of n bits has a probability of 2^-n.
// Symbols that the block lacks have 0 bits: all ranks of a small alphabet are near.
bool IsNear(const CodeLengths& lengths) {
  constexpr unsigned kMostBits = 20;
  constexpr std::uint32_t kOne = 1U << kMostBits;
  std::uint32_t near = 0;
  for (std::uint32_t rank = 1; rank < kNear; ++rank) near += kOne >> lengths[rank + 1];
  return near > kOne / 5 * 3;
}

// Whether any two neighbours among the nine bytes from here on are equal.
bool HasEqualNeighbours(const std::uint8_t* bytes) {
  constexpr std::uint64_t kLow = 0x0101010101010101;
  constexpr std::uint64_t kHigh = 0x8080808080808080;
  const std::uint64_t differences = LoadLe64(bytes) ^ LoadLe64(bytes + 1);
  return ((differences - kLow) & ~differences & kHigh) != 0;
}

}  // namespace

std::uint32_t BlockReader::ReadBytesInUse(BitReader* bits) {
  std::uint32_t used = 0;
  const std::uint64_t rows = bits->Read(16);
  for (std::uint32_t row = 0; row < 16; ++row) {
    if ((rows >> (15 - row) & 1) == 0) continue;
    const std::uint64_t columns = bits->Read(16);
    for (std::uint32_t column = 0; column < 16; ++column) {
      if ((columns >> (15 - column) & 1) == 0) continue;
      bytes_in_use_[used++] = static_cast<std::uint8_t>(row * 16 + column);
    }
  }
  return used;
}

void BlockReader::ReadSelectors(BitReader* bits) {
  std::array<std::uint8_t, 6> list = {0, 1, 2, 3, 4, 5};
  const auto selectors = static_cast<std::uint32_t>(bits->Read(15));
  if (selectors == 0) throw Damaged("no selectors", bit_);
  selectors_.clear();
  for (std::uint32_t i = 0; i < selectors; ++i) {
    std::uint32_t rank = 0;
    while (bits->Read(1) != 0) {
      if (++rank == codes_in_use_) throw Damaged("a bad selector", bit_);
    }
    std::rotate(list.begin(), list.begin() + rank, list.begin() + rank + 1);
    // Some encoders write a few more selectors than a block can need. They are ignored.
    if (i < kMostSelectors) selectors_.push_back(list[0]);
  }
}

void BlockReader::ReadCode(BitReader* bits, std::uint32_t symbols, Code* code) {
  CodeLengths lengths{};
  std::array<std::uint32_t, Code::kMostBits + 1> counts{};
  auto length = static_cast<std::uint32_t>(bits->Read(5));
  for (std::uint32_t symbol = 0; symbol < symbols; ++symbol) {
    for (;;) {
      if (length < 1 || length > Code::kMostBits) throw Damaged("a bad code length", bit_);
      if (bits->Read(1) == 0) break;
      length = bits->Read(1) == 0 ? length + 1 : length - 1;
    }
    lengths[symbol] = static_cast<std::uint8_t>(length);
    ++counts[length];
  }
  std::array<std::uint32_t, Code::kMostBits + 1> next_place{};
  std::array<std::uint32_t, Code::kMostBits + 1> next_code{};
  std::uint32_t first = 0;
  std::uint32_t place = 0;
  for (std::uint32_t n = 1; n <= Code::kMostBits; ++n) {
    first *= 2;
    next_place[n] = place;
    next_code[n] = first;
    code->first_place[n] = place - first;  // may wrap around; adding a code wraps it back
    first += counts[n];
    place += counts[n];
    if (first > std::uint32_t{1} << n) throw Damaged("more codes than their lengths allow", bit_);
    code->end[n] = first;
  }
  code->near = IsNear(lengths);
  code->look_up.fill(0);
  for (std::uint32_t symbol = 0; symbol < symbols; ++symbol) {
    const std::uint32_t n = lengths[symbol];
    code->symbols[next_place[n]++] = static_cast<std::uint16_t>(symbol);
    if (n > Code::kLookUpBits) continue;
    const std::uint32_t shift = Code::kLookUpBits - n;
    std::fill_n(code->look_up.begin() + (std::size_t{next_code[n]++} << shift),
                std::size_t{1} << shift, static_cast<std::uint16_t>(symbol << 5 | n));
  }
}

[[gnu::always_inline]] inline std::uint32_t BlockReader::NextSymbol(const Code& code,
                                                                    BitReader* bits) const {
  bits->Refill();
  const std::uint32_t entry = code.look_up[bits->Peek(Code::kLookUpBits)];
  if (entry != 0) {
    bits->Skip(entry & 31);
    return entry >> 5;
  }
  for (unsigned length = Code::kLookUpBits + 1; length <= Code::kMostBits; ++length) {
    const auto value = static_cast<std::uint32_t>(bits->Peek(length));
    if (value >= code.end[length]) continue;
    bits->Skip(length);
    return code.symbols[code.first_place[length] + value];
  }
  throw Damaged("an unknown code", bits->bit());
}

template <typename List>
[[gnu::always_inline]] inline void BlockReader::ReadSymbolsInto(List list, std::uint32_t end_symbol,
                                                                BitReader* bits) {
  std::uint8_t* out = sorted_.data();
  const std::uint8_t* limit = out + sorted_.size();
  std::uint32_t run = 0;
  std::uint32_t digit = 0;
  for (const std::uint8_t selector : selectors_) {
    if (bits->overrun()) throw Error::Corrupt("bzip2: the file ends within a block", bit_ / 8);
    const Code& code = codes_[selector];
    for (std::uint32_t i = 0; i < kGroup; ++i) {
      const std::uint32_t symbol = NextSymbol(code, bits);
      if (symbol <= kRunB) {
        run += (symbol + 1) << digit++;
        if (run > kMostSortedNbytes) throw Damaged("too many bytes", bit_);
        continue;
      }
      if (run != 0) {
        if (run > static_cast<std::uint32_t>(limit - out)) throw Damaged("too many bytes", bit_);
        std::memset(out, list.front(), run);
        counts_[list.front()] += run;
        out += run;
        run = 0;
        digit = 0;
      }
      if (symbol == end_symbol) {
        sorted_nbytes_ = static_cast<std::uint32_t>(out - sorted_.data());
        return;
      }
      if (out == limit) throw Damaged("too many bytes", bit_);
      const std::uint8_t byte = list.Take(symbol - 1, code.near);
      *out++ = byte;
      ++counts_[byte];
    }
  }
  throw Damaged("no end", bit_);
}

void BlockReader::ReadSymbols(std::uint32_t end_symbol, BitReader* bits) {
  sorted_.resize(kMostSortedNbytes);
  counts_.fill(0);
  if (UseAvx2()) {
    ReadSymbolsAvx2(end_symbol, bits);
  } else {
    ReadSymbolsInto(FrontList<Lane16>(bytes_in_use_), end_symbol, bits);
  }
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] void BlockReader::ReadSymbolsAvx2(std::uint32_t end_symbol,
                                                          BitReader* bits) {
  ReadSymbolsInto(FrontList<Lane32>(bytes_in_use_), end_symbol, bits);
}
#else
// Never called, because UseAvx2() is false on this architecture.
void BlockReader::ReadSymbolsAvx2(std::uint32_t, BitReader*) { std::abort(); }
#endif

void BlockReader::FindRuns() {
  runs_.clear();
  raw_nbytes_ = sorted_nbytes_;
  const std::uint8_t* bytes = unsorted_.data();
  std::uint32_t equal = 1;  // how many equal bytes end at i
  for (std::uint32_t i = 0; i + 1 < sorted_nbytes_;) {
    if (equal == 1 && i + 8 < sorted_nbytes_ && !HasEqualNeighbours(bytes + i)) {
      i += 8;
      continue;
    }
    equal = bytes[i + 1] == bytes[i] ? equal + 1 : 1;
    ++i;
    if (equal < kEqualBytes) continue;
    if (++i == sorted_nbytes_) throw Damaged("a run without a length", bit_);
    runs_.push_back(i);
    raw_nbytes_ += bytes[i];
    --raw_nbytes_;
    // The byte with the length is not data, so counting starts again after it.
    ++i;
    equal = 1;
  }
}

void BlockReader::Read(Span file, std::uint64_t bit) {
  bit_ = bit;
  BitReader bits(file, bit);
  if (bits.Read(kMagicBits) != kBlockMagic) {
    throw Error::Corrupt("bzip2: no block begins here", bit / 8);
  }
  crc_ = static_cast<std::uint32_t>(bits.Read(kCrcBits));
  if (bits.Read(1) != 0) throw Damaged("an obsolete randomization", bit);
  const auto origin = static_cast<std::uint32_t>(bits.Read(24));
  const std::uint32_t used = ReadBytesInUse(&bits);
  codes_in_use_ = static_cast<std::uint32_t>(bits.Read(3));
  if (used == 0 || codes_in_use_ < 2 || codes_in_use_ > codes_.size()) {
    throw Damaged("a bad header", bit);
  }
  ReadSelectors(&bits);
  const std::uint32_t end_symbol = used + 1;
  for (std::uint32_t i = 0; i < codes_in_use_; ++i) ReadCode(&bits, end_symbol + 1, &codes_[i]);
  ReadSymbols(end_symbol, &bits);
  if (bits.overrun()) throw Error::Corrupt("bzip2: the file ends within a block", bit / 8);
  if (origin >= sorted_nbytes_) throw Damaged("an origin beyond its end", bit);
  end_bit_ = bits.bit();
  unsorted_.resize(kMostSortedNbytes);
  unsorter_.Unsort({sorted_.data(), sorted_nbytes_}, origin, counts_, unsorted_.data());
  FindRuns();
}

void BlockReader::Expand(std::uint8_t* out) const {
  std::uint32_t at = 0;
  for (const std::uint32_t run : runs_) {
    out = std::copy(unsorted_.data() + at, unsorted_.data() + run, out);
    out = std::fill_n(out, unsorted_[run], unsorted_[run - 1]);
    at = run + 1;
  }
  std::copy(unsorted_.data() + at, unsorted_.data() + sorted_nbytes_, out);
}

}  // namespace pyckpt::bzip2
