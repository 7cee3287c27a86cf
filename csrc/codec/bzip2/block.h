// Encodes one bzip2 block: run-length coding, block sort, move-to-front, Huffman codes.
#ifndef PYCKPT_CODEC_BZIP2_BLOCK_H_
#define PYCKPT_CODEC_BZIP2_BLOCK_H_

#include <cstdint>

#include "base/bytes.h"
#include "codec/bzip2/huffman.h"
#include "codec/bzip2/mtf.h"
#include "codec/bzip2/sort.h"

namespace pyckpt::bzip2 {

// Reused from block to block. Memory for a block of n run-length coded bytes: the sorter's, n bytes
// for the coded bytes, and 2n bytes for their ranks.
class BlockEncoder {
 public:
  struct Block {
    std::size_t raw_nbytes;  // how many bytes of the input the block holds
    std::uint32_t crc;       // of those bytes
  };

  // Encodes the longest prefix of raw that takes at most limit bytes after run-length coding.
  // Appends the block after the first *nbits bits of out, and updates *nbits. raw is not empty.
  Block Append(Span raw, std::size_t limit, Buffer* out, std::uint64_t* nbits);

 private:
  Buffer runs_;
  BlockSorter sorter_;
  RankedBlock ranked_;
  GroupCodes codes_;
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_BLOCK_H_
