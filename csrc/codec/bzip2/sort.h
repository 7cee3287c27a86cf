// bzip2's second stage, the Burrows-Wheeler transform: all rotations of a block are sorted, and the
// output is the byte before each of them.
//
// Floats are noise, so their rotations differ within a few bytes. They are sorted by radix, and
// stretches of repeated bytes by where they end. If too many rotations of a block still have long
// common prefixes, a suffix array sorts the block. So every input takes about linear time.
//
// Memory for a block of n bytes, in bytes: n for a copy. For the radix sort, 8n, and 8 for each
// occurrence of the most frequent byte, at most 4.8n. For the suffix array, 5n, and up to 8n more
// while it is built.
#ifndef PYCKPT_CODEC_BZIP2_SORT_H_
#define PYCKPT_CODEC_BZIP2_SORT_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/bzip2/few_keys.h"
#include "codec/bzip2/rotation_key.h"

namespace pyckpt::bzip2 {

class BlockSorter {
 public:
  static constexpr std::size_t kMostNbytes = 900'000;  // the format's own limit

  // Writes the transform of block to out and returns the rank of the block itself among the sorted
  // rotations. The transform is as long as block, which has 1 to kMostNbytes bytes. out needs room
  // for one byte more, and may be block's own memory.
  std::uint32_t Sort(Span block, std::uint8_t* out);

 private:
  using Key = RotationKey;

  bool SortByRadix(std::uint8_t* out);
  bool SortKeys(Key* keys, Key* spare, std::size_t n, int bits, std::size_t depth);
  template <int kMostBits>
  bool SortByDigit(Key* keys, Key* spare, std::size_t n, int bits, std::size_t depth);
  void EmitOne(Key key);
  bool Emit(Key* keys, Key* spare, std::size_t n, std::size_t depth);
  bool SortDeeper(Key* keys, Key* spare, std::size_t n, std::size_t depth);
  std::size_t FindPeriod(Key* keys, std::size_t n, std::size_t depth);
  bool SortPeriodic(Key* keys, Key* spare, std::size_t n, std::size_t period, std::size_t depth);
  std::uint32_t SortBySuffixes(Span block, std::uint8_t* out);

  // Of an index below 3 * nbytes_.
  std::size_t Wrap(std::size_t at) const {
    while (at >= nbytes_) at -= nbytes_;
    return at;
  }
  std::uint8_t ByteAt(std::size_t at) const { return block_[Wrap(at)]; }

  Buffer padded_;  // the byte before the block, the block, its beginning again
  const std::uint8_t* block_ = nullptr;  // in padded_
  std::size_t nbytes_ = 0;
  std::vector<Key> keys_;
  std::vector<Key> spare_;
  std::vector<std::int32_t> suffixes_;
  EmitFewKeys emit_few_keys_ = ChooseEmitFewKeys();
  Key origin_key_ = 0;           // of the rotation that is the block itself, by its first bytes
  std::uint8_t* out_ = nullptr;  // the next byte of the transform
  std::uint8_t* out_begin_ = nullptr;
  std::uint32_t origin_ = 0;
  std::size_t extended_ = 0;  // how many keys were extended; a key counts each time
  int level_ = 0;             // how many calls of SortDeeper() have not returned
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_SORT_H_
