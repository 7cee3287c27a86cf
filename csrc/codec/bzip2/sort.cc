#include "codec/bzip2/sort.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "codec/bzip2/suffix_array.h"

namespace pyckpt::bzip2 {
namespace {

constexpr std::size_t kSymbols = 256;

// A key, from its highest bit down: the bits of the rotation that are compared next, the byte
// before the rotation, the index at which the rotation starts.
constexpr int kIndexBits = 20;
constexpr int kBeforeBits = 8;
constexpr int kRowBits = kBeforeBits + kIndexBits;
constexpr int kComparedBits = 64 - kRowBits;
constexpr std::uint64_t kIndexMask = (std::uint64_t{1} << kIndexBits) - 1;
constexpr std::uint64_t kRowMask = (std::uint64_t{1} << kRowBits) - 1;
constexpr std::size_t kComparedNbytes = kComparedBits / 8;
constexpr int kFirstShift = 56;  // of the byte that the whole block is sorted by first
static_assert(BlockSorter::kMostNbytes <= kIndexMask + 1, "an index does not fit");

// For up to this many keys, comparing all is faster than one more radix pass.
constexpr std::size_t kFew = 40;
// How many bytes follow the block in memory, because keys are loaded as words of eight bytes.
constexpr std::size_t kPadding = 8;

// How many keys may be extended: kExtensions for each row that is done, and a kFirstShare-th of the
// block's length, because the first rows do not tell much. With more extensions, or at more than
// kDeepest bytes, the suffix array is faster.
constexpr std::size_t kExtensions = 2;
constexpr std::size_t kFirstShare = 16;
constexpr std::size_t kDeepest = 256;
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

// By how many bits n keys are sorted in one pass. In noise this leaves four to eight keys with
// equal digits. With more bits, too many places are empty, and going through them is slow. With
// fewer bits, too many keys remain to be compared.
constexpr int kMostDigitBits = 8;
int DigitBits(std::size_t n) {
  constexpr int kFewest = 5;
  int bits = kFewest;
  while (bits < kMostDigitBits && n >> (bits + 3) != 0) ++bits;
  return bits;
}

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
  if (keys_.size() < nbytes_) keys_.resize(nbytes_);
  if (spare_.size() < largest) spare_.resize(largest);
  for (std::size_t i = 0; i < nbytes_; ++i) {
    const std::uint64_t word = LoadBe64(block_ + i);
    const std::uint64_t before = block_[static_cast<std::ptrdiff_t>(i) - 1];
    keys_[next[word >> kFirstShift]++] = (word << 8 & ~kRowMask) | before << kIndexBits | i;
  }
  out_ = out;
  out_begin_ = out;
  extended_ = 0;
  std::size_t start = 0;
  for (const std::size_t end : next) {
    if (!SortKeys(keys_.data() + start, spare_.data(), end - start, kComparedBits,
                  1 + kComparedNbytes)) {
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
  if (n <= kFew || bits == 0) {
    if (bits != 0) SortByCounting(keys, spare, n);
    return Emit(keys, spare, n, depth);
  }
  const int digit_bits = std::min(bits, DigitBits(n));
  const int shift = kRowBits + bits - digit_bits;
  const std::size_t digits = std::size_t{1} << digit_bits;
  const auto digit = [=](Key key) { return key >> shift & (digits - 1); };
  std::array<std::uint32_t, std::size_t{1} << kMostDigitBits> next;
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
  if ((key & kIndexMask) == 0) origin_ = static_cast<std::uint32_t>(out_ - out_begin_);
  *out_++ = static_cast<std::uint8_t>(key >> kIndexBits);
}

// Writes the bytes before the sorted rotations. Rotations with equal keys are first sorted by the
// bytes that follow. Returns false if it gave up.
bool BlockSorter::Emit(Key* keys, Key* spare, std::size_t n, std::size_t depth) {
  std::uint8_t* out = out_;
  for (std::size_t i = 0; i < n;) {
    if (i + 1 < n && (keys[i] ^ keys[i + 1]) <= kRowMask) {
      std::size_t end = i + 2;
      while (end < n && (keys[i] ^ keys[end]) <= kRowMask) ++end;
      out_ = out;
      if (!SortDeeper(keys + i, spare + i, end - i, depth)) return false;
      out = out_;
      i = end;
      continue;
    }
    if ((keys[i] & kIndexMask) == 0) origin_ = static_cast<std::uint32_t>(out - out_begin_);
    *out++ = static_cast<std::uint8_t>(keys[i] >> kIndexBits);
    ++i;
  }
  out_ = out;
  return true;
}

bool BlockSorter::SortDeeper(Key* keys, Key* spare, std::size_t n, std::size_t depth) {
  extended_ += n;
  const auto rows = static_cast<std::size_t>(out_ - out_begin_);
  if (extended_ > nbytes_ / kFirstShare + kExtensions * rows || depth > kDeepest) return false;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t index = keys[i] & kIndexMask;
    std::size_t at = index + depth;
    while (at >= nbytes_) at -= nbytes_;
    keys[i] = (LoadBe64(block_ + at) & ~kRowMask) | (keys[i] & kRowMask);
  }
  return SortKeys(keys, spare, n, kComparedBits, depth + kComparedNbytes);
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
