#include "codec/bzip2/sort.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "codec/bzip2/suffix_array.h"

namespace pyckpt::bzip2 {
namespace {

constexpr std::size_t kSymbols = 256;

// A key, from its highest bit: the bytes of the rotation that are to be compared
// next, the byte before the rotation, where it starts.
constexpr int kIndexBits = 20;
constexpr int kBeforeBits = 8;
constexpr int kRowBits = kBeforeBits + kIndexBits;
constexpr int kComparedBits = 64 - kRowBits;
constexpr std::uint64_t kIndexMask = (std::uint64_t{1} << kIndexBits) - 1;
constexpr std::uint64_t kRowMask = (std::uint64_t{1} << kRowBits) - 1;
constexpr std::size_t kComparedNbytes = kComparedBits / 8;
constexpr int kFirstShift = 56;  // of the byte that the whole block is sorted by
static_assert(BlockSorter::kMostNbytes <= kIndexMask + 1, "an index does not fit");

// Up to so many keys, comparing all beats another pass of radix.
constexpr std::size_t kFew = 40;
// What the block is padded with: a key is cut from a word of eight bytes.
constexpr std::size_t kPadding = 8;

// Keys may be extended kExtensions times a row on average, and by the first few
// rows, which do not tell much yet, as often as a sixteenth of the block is long.
// Beyond that, or that deep, the suffix array is faster.
constexpr std::size_t kExtensions = 2;
constexpr std::size_t kFirstShare = 16;
constexpr std::size_t kDeepest = 256;
// A byte that makes up more of the block than this is not noise. It also bounds
// the memory for sorting the rotations that begin with it.
constexpr std::size_t kMostOfOnePercent = 60;

// Each key's place is how many are smaller: more comparisons than other ways make, but
// no branch that depends on noise.
void SortByCounting(std::uint64_t* keys, std::uint64_t* spare, std::size_t n) {
  // Not by memcpy(): loads would wait for its wide stores.
  for (std::size_t i = 0; i < n; ++i) spare[i] = keys[i];
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t key = spare[i];
    std::size_t place = 0;
#pragma GCC unroll 8
    for (std::size_t j = 0; j < n; ++j) place += spare[j] < key ? 1 : 0;
    keys[place] = key;
  }
}

// How many bits n keys are sorted by at a time: in noise that leaves four to eight of some
// hundred together. More places are dear to go through when they are empty, fewer leave too much
// to compare.
constexpr int kMostDigitBits = 8;
int DigitBits(std::size_t n) {
  constexpr int kFewest = 5;
  int bits = kFewest;
  while (bits < kMostDigitBits && n >> (bits + 3) != 0) ++bits;
  return bits;
}

// Where the smallest rotation starts, and the shortest period of the block.
struct LeastRotation {
  std::size_t start;
  std::size_t period;
};

// Duval's factorization (1983) of the block written twice: the last factor that
// begins in its first half begins the smallest rotation.
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

// First by one byte over the whole block, so that all that follows stays in the
// cache; the transform comes out in order. False when it was given up.
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

// Sorts keys, of which so many of the bits that are compared may differ, the lowest ones, and
// emits them. spare has room for n; what is in either afterwards is of no use. depth is how many
// bytes of a rotation its key and what precedes it cover.
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

// Writes the bytes before sorted rotations. Those whose keys do not tell them
// apart are sorted by the bytes that follow.
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

// A suffix array sorts rotations when the text starts at its smallest rotation
// and is not itself a repetition: then no suffix is a prefix of another rotation
// that it should follow. A block that repeats a shorter one has each of that
// one's rotations many times over.
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
