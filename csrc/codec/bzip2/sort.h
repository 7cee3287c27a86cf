// bzip2's second stage, the Burrows-Wheeler transform: all rotations of a block,
// sorted; of each, the byte before it.
//
// Floats are noise whose rotations differ within a few bytes: those are sorted
// by radix. A block in which too many do not differ soon goes to a suffix
// array, so no input takes more than linear time.
//
// Memory for a block of n bytes: n; 8n for the radix sort, and 8 for each
// occurrence of the commonest byte, at most 4.8n; 5n for the suffix array, and up
// to 8n more while it is built.
#ifndef PYCKPT_CODEC_BZIP2_SORT_H_
#define PYCKPT_CODEC_BZIP2_SORT_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

class BlockSorter {
 public:
  static constexpr std::size_t kMostNbytes = 900'000;  // the format's own limit

  // Writes the transform of block, which is as long and not empty, to out, and
  // returns which of the sorted rotations is the block itself. out may be block.
  std::uint32_t Sort(Span block, std::uint8_t* out);

 private:
  // A rotation that waits for its place.
  using Key = std::uint64_t;

  bool SortByRadix(std::uint8_t* out);
  bool SortKeys(Key* keys, Key* spare, std::size_t n, int bits, std::size_t depth);
  void EmitOne(Key key);
  bool Emit(Key* keys, Key* spare, std::size_t n, std::size_t depth);
  bool SortDeeper(Key* keys, Key* spare, std::size_t n, std::size_t depth);
  std::uint32_t SortBySuffixes(Span block, std::uint8_t* out);

  Buffer padded_;  // the byte before the block, the block, its beginning again
  const std::uint8_t* block_ = nullptr;  // in padded_
  std::size_t nbytes_ = 0;
  std::vector<Key> keys_;
  std::vector<Key> spare_;
  std::vector<std::int32_t> suffixes_;
  std::uint8_t* out_ = nullptr;  // the next byte of the transform
  std::uint8_t* out_begin_ = nullptr;
  std::uint32_t origin_ = 0;
  std::size_t extended_ = 0;  // keys that had to be, counted each time
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_SORT_H_
