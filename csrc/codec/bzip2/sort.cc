#include "codec/bzip2/sort.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "codec/bzip2/suffix_array.h"

namespace pyckpt::bzip2 {
namespace {

constexpr std::size_t kSymbols = 256;

constexpr std::size_t kComparedNbytes = kComparedBits / 8;
constexpr int kFirstShift = 56;  // of the byte that the whole block is sorted by first
constexpr std::size_t kFirstDepth = 1 + kComparedNbytes;
static_assert(BlockSorter::kMostNbytes <= std::size_t{1} << kIndexBits, "an index does not fit");

// How many bytes follow the block in memory, because keys are loaded as words of eight bytes.
constexpr std::size_t kPadding = 8;

// How many keys may be extended: kExtensions for each row that is done, and a kFirstShare-th of the
// block's length, because the first rows do not tell much. With more extensions, or with more than
// kMostLevels of them for one rotation, the suffix array is faster.
constexpr std::size_t kExtensions = 2;
constexpr std::size_t kFirstShare = 16;
constexpr int kMostLevels = 64;
// Rotations that have this many bytes in common are searched for a period.
constexpr std::size_t kPeriodicDepth = 32;
// How far ahead memory is prefetched for each of the 256 groups that the first pass writes to. Each
// group goes on to new memory every eight keys, and hardware does not follow so many.
constexpr std::size_t kPrefetchedKeys = 16;
// If one byte makes up more of the block than this, the block is not noise. This also bounds the
// memory for sorting the rotations that begin with one byte.
constexpr std::size_t kMostOfOnePercent = 60;

// Each key's place is the number of smaller keys. This takes more comparisons than other methods,
// but no branch depends on noise.
void SortByCounting(std::uint64_t* keys, std::uint64_t* spare, std::size_t n) {
  // Not memcpy(): the loads below would wait for its wide stores.
  for (std::size_t i = 0; i < n; ++i) spare[i] = keys[i];
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t key = spare[i];
    std::size_t place = 0;
#pragma GCC unroll 8
    for (std::size_t j = 0; j < n; ++j) place += spare[j] < key ? 1 : 0;
    keys[place] = key;
  }
}

// By how many bits n keys are sorted in one pass. In noise this leaves sixteen to 32 keys with
// equal digits. With more bits, too many places are empty, and going through them is slow. With
// fewer bits, too many keys remain to be compared.
constexpr int kFewestDigitBits = 6;
int DigitBits(std::size_t n, int most) {
  int bits = kFewestDigitBits;
  while (bits < most && n >> (bits + 5) != 0) ++bits;
  return bits;
}
static_assert(kComparedBits - kFewestDigitBits <= kFewKeysBits,
              "after one pass, a few keys can be emitted");

// The first passes over a block sort many keys. Later ones may be nested deeply, so they should not
// take much of the stack.
constexpr int kMostFirstDigitBits = 11;
constexpr int kMostLaterDigitBits = 8;

// Where the smallest rotation starts, and the block's shortest period, in bytes. The period divides
// the block's length.
struct LeastRotation {
  std::size_t start;
  std::size_t period;
};

// Duval's factorization (1983) of the block written twice. The last factor that begins in the first
// half is where the smallest rotation begins.
LeastRotation FindLeastRotation(Span block) {
  const std::size_t n = block.nbytes;
  const auto at = [&](std::size_t i) { return block.data[i < n ? i : i - n]; };
  LeastRotation least{0, n};
  for (std::size_t i = 0; i < n;) {
    std::size_t j = i + 1;
    std::size_t k = i;
    for (; j < 2 * n && at(k) <= at(j); ++j) k = at(k) < at(j) ? i : k + 1;
    least = {i, j - k};
    while (i <= k) i += j - k;
  }
  return least;
}

}  // namespace

std::uint32_t BlockSorter::Sort(Span block, std::uint8_t* out) {
  nbytes_ = block.nbytes;
  std::uint8_t* padded = padded_.Reserve(1 + nbytes_ + kPadding);
  padded[0] = block.data[nbytes_ - 1];
  std::memcpy(padded + 1, block.data, nbytes_);
  block_ = padded + 1;
  for (std::size_t i = 0; i < kPadding; ++i) padded[1 + nbytes_ + i] = block_[i % nbytes_];
  if (SortByRadix(out)) return origin_;
  return SortBySuffixes({block_, nbytes_}, out);
}

// Sorts the whole block by one byte first, so that all later passes stay in the cache. Writes the
// transform in order. Returns false if it gave up.
bool BlockSorter::SortByRadix(std::uint8_t* out) {
  std::array<std::size_t, kSymbols> next{};
  for (std::size_t i = 0; i < nbytes_; ++i) ++next[block_[i]];
  std::size_t sum = 0;
  std::size_t largest = 0;
  for (std::size_t& n : next) {
    largest = std::max(largest, n);
    sum += n;
    n = sum - n;
  }
  if (largest * 100 > nbytes_ * kMostOfOnePercent) return false;
  if (keys_.size() < nbytes_ + kPrefetchedKeys) keys_.resize(nbytes_ + kPrefetchedKeys);
  if (spare_.size() < largest + kSlackKeys) spare_.resize(largest + kSlackKeys);
  for (std::size_t i = 0; i < nbytes_; ++i) {
    const std::uint64_t word = LoadBe64(block_ + static_cast<std::ptrdiff_t>(i) - 1);
    Key* key = &keys_[next[word >> 48 & 255]++];
    __builtin_prefetch(key + kPrefetchedKeys, 1);
    *key = MakeKey(word << 16, i, static_cast<std::uint8_t>(word >> 56));
  }
  origin_key_ = LoadBe64(block_) << 8;
  out_ = out;
  out_begin_ = out;
  extended_ = 0;
  level_ = 0;
  std::size_t start = 0;
  for (const std::size_t end : next) {
    if (!SortKeys(keys_.data() + start, spare_.data(), end - start, kComparedBits, kFirstDepth)) {
      return false;
    }
    start = end;
  }
  return true;
}

// Sorts n keys and emits them. Only the lowest `bits` of the compared bits may differ. spare has
// room for n keys; both arrays have no useful contents afterwards. depth is how many bytes of a
// rotation are covered by its key and by earlier keys. Returns false if it gave up.
bool BlockSorter::SortKeys(Key* keys, Key* spare, std::size_t n, int bits, std::size_t depth) {
  const bool first = depth == kFirstDepth;
  if (n > kFewKeys && bits != 0) {
    return first ? SortByDigit<kMostFirstDigitBits>(keys, spare, n, bits, depth)
                 : SortByDigit<kMostLaterDigitBits>(keys, spare, n, bits, depth);
  }
  if (first && n <= kFewKeys && bits <= kFewKeysBits) {
    // The origin is not looked for among these.
    const bool may_have_origin = (keys[0] ^ origin_key_) >> kRowBits >> bits == 0;
    if (!may_have_origin && emit_few_keys_(keys, n, out_)) {
      out_ += n;
      return true;
    }
  }
  if (bits != 0) SortByCounting(keys, spare, n);
  return Emit(keys, spare, n, depth);
}

template <int kMostBits>
bool BlockSorter::SortByDigit(Key* keys, Key* spare, std::size_t n, int bits, std::size_t depth) {
  const int digit_bits = std::min(bits, DigitBits(n, kMostBits));
  const int shift = kRowBits + bits - digit_bits;
  const std::size_t digits = std::size_t{1} << digit_bits;
  const auto digit = [=](Key key) { return key >> shift & (digits - 1); };
  std::array<std::uint32_t, std::size_t{1} << kMostBits> next;
  std::fill_n(next.begin(), digits, 0);
  for (std::size_t i = 0; i < n; ++i) ++next[digit(keys[i])];
  std::uint32_t sum = 0;
  for (std::size_t d = 0; d < digits; ++d) {
    sum += next[d];
    next[d] = sum - next[d];
  }
  for (std::size_t i = 0; i < n; ++i) spare[next[digit(keys[i])]++] = keys[i];
  std::size_t start = 0;
  for (std::size_t d = 0; d < digits; ++d) {
    const std::size_t end = next[d];
    if (end - start == 1) {
      EmitOne(spare[start]);
    } else if (start != end &&
               !SortKeys(spare + start, keys + start, end - start, bits - digit_bits, depth)) {
      return false;
    }
    start = end;
  }
  return true;
}

void BlockSorter::EmitOne(Key key) {
  if (IndexOf(key) == 0) origin_ = static_cast<std::uint32_t>(out_ - out_begin_);
  *out_++ = BeforeOf(key);
}

// Writes the bytes before the sorted rotations. Rotations with equal keys are first sorted by the
// bytes that follow. Returns false if it gave up.
bool BlockSorter::Emit(Key* keys, Key* spare, std::size_t n, std::size_t depth) {
  std::uint8_t* out = out_;
  for (std::size_t i = 0; i < n;) {
    if (i + 1 < n && SameCompared(keys[i], keys[i + 1])) {
      std::size_t end = i + 2;
      while (end < n && SameCompared(keys[i], keys[end])) ++end;
      out_ = out;
      if (!SortDeeper(keys + i, spare + i, end - i, depth)) return false;
      out = out_;
      i = end;
      continue;
    }
    if (IndexOf(keys[i]) == 0) origin_ = static_cast<std::uint32_t>(out - out_begin_);
    *out++ = BeforeOf(keys[i]);
    ++i;
  }
  out_ = out;
  return true;
}

// Sorts rotations that have their first depth bytes in common, and emits them.
bool BlockSorter::SortDeeper(Key* keys, Key* spare, std::size_t n, std::size_t depth) {
  extended_ += n;
  const auto rows = static_cast<std::size_t>(out_ - out_begin_);
  if (extended_ > nbytes_ / kFirstShare + kExtensions * rows) return false;
  if (level_ == kMostLevels || depth >= nbytes_) return false;
  ++level_;
  bool done = false;
  const std::size_t period = depth < kPeriodicDepth ? 0 : FindPeriod(keys, n, depth);
  if (period != 0) {
    done = SortPeriodic(keys, spare, n, period, depth);
  } else {
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t at = Wrap(IndexOf(keys[i]) + depth);
      keys[i] = MakeKey(LoadBe64(block_ + at), IndexOf(keys[i]), BeforeOf(keys[i]));
    }
    done = SortKeys(keys, spare, n, kComparedBits, depth + kComparedNbytes);
  }
  --level_;
  return done;
}

// If two rotations begin so close to each other that what they have in common overlaps, it repeats
// the bytes between their beginnings. Returns how many these are, at the least, or 0. Sorts the
// keys by their indexes.
std::size_t BlockSorter::FindPeriod(Key* keys, std::size_t n, std::size_t depth) {
  for (std::size_t i = 0; i < n; ++i) keys[i] &= kRowMask;
  std::sort(keys, keys + n);
  std::size_t period = nbytes_;
  for (std::size_t i = 1; i < n; ++i) {
    period = std::min(period, IndexOf(keys[i]) - IndexOf(keys[i - 1]));
  }
  return period <= depth / 2 ? period : 0;
}

// Sorts and emits rotations that begin with the same repeated bytes, at least depth of them. The
// keys are in the order of their indexes. A long stretch of zeros, which run-length coding turns
// into a stretch of the same five bytes, would else take time that grows with the square of its
// length.
//
// All these rotations are prefixes of one endless repetition, up to their ends: the first byte that
// differs from it. Those with a smaller byte there come before those with a larger one. Of the
// former the ones that end early come first, of the latter the ones that end late.
bool BlockSorter::SortPeriodic(Key* keys, Key* spare, std::size_t n, std::size_t period,
                               std::size_t depth) {
  constexpr std::size_t kFirstLarger = std::size_t{1} << kIndexBits;
  std::size_t end = 0;  // its index, not wrapped
  std::size_t next = 0;
  for (std::size_t i = n; i > 0; --i) {
    const std::size_t index = IndexOf(keys[i - 1]);
    // If the same bytes go on at the next rotation, it has the same end.
    if (next - index != period || i == n) {
      end = index + depth;
      while (end < index + nbytes_ && ByteAt(end) == ByteAt(end - period)) ++end;
      if (end == index + nbytes_) return false;  // the block is nothing else
    }
    next = index;
    const std::size_t length = end - index;
    const bool larger = ByteAt(end) > ByteAt(end - period);
    const std::size_t place = larger ? 2 * kFirstLarger - length : length;
    keys[i - 1] |= Key{place} << kRowBits;
  }
  std::sort(keys, keys + n);
  for (std::size_t i = 0, same = 0; i < n; i += same) {
    same = 1;
    while (i + same < n && SameCompared(keys[i], keys[i + same])) ++same;
    if (same == 1) {
      EmitOne(keys[i]);
      continue;
    }
    const std::size_t place = keys[i] >> kRowBits;
    const std::size_t length = place < kFirstLarger ? place : 2 * kFirstLarger - place;
    if (!SortDeeper(keys + i, spare + i, same, length)) return false;
  }
  return true;
}

// A suffix array gives the order of rotations if the text starts at its smallest rotation and is
// not a repetition of a shorter text. Then a suffix that is a prefix of a longer one belongs before
// it as a rotation too. If the block repeats a shorter text, each rotation of that text occurs once
// per repetition.
std::uint32_t BlockSorter::SortBySuffixes(Span block, std::uint8_t* out) {
  const LeastRotation least = FindLeastRotation(block);
  const std::size_t times = block.nbytes / least.period;
  std::vector<std::uint8_t> text(least.period);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::size_t at = least.start + i;
    text[i] = block.data[at < block.nbytes ? at : at - block.nbytes];
  }
  BuildSuffixArray({text.data(), text.size()}, &suffixes_);
  const std::size_t origin_at = (least.period - least.start % least.period) % least.period;
  std::uint32_t origin = 0;
  for (std::size_t row = 0; row < text.size(); ++row) {
    const auto at = static_cast<std::size_t>(suffixes_[row]);
    if (at == origin_at) origin = static_cast<std::uint32_t>(row * times);
    std::memset(out + row * times, at == 0 ? text.back() : text[at - 1], times);
  }
  return origin;
}

}  // namespace pyckpt::bzip2
