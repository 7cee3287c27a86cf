// One bzip2 block from raw bytes to bits: run-length coding, block sort,
// move-to-front, Huffman codes.
#ifndef PYCKPT_CODEC_BZIP2_BLOCK_H_
#define PYCKPT_CODEC_BZIP2_BLOCK_H_

#include <cstdint>

#include "base/bytes.h"
#include "codec/bzip2/huffman.h"
#include "codec/bzip2/mtf.h"
#include "codec/bzip2/sort.h"

namespace pyckpt::bzip2 {

// Reused from block to block. Memory for a block of n run-length coded bytes:
// the sorter's, and n for those bytes and 2n for their ranks.
class BlockEncoder {
 public:
  struct Block {
    std::size_t raw_nbytes;  // how much of the input is in it
    std::uint32_t crc;       // of those bytes
  };

  // Encodes the longest prefix of raw, which is not empty, that run-length codes
  // to at most limit bytes, and appends it to the nbits at the front of out.
  Block Append(Span raw, std::size_t limit, Buffer* out, std::uint64_t* nbits);

 private:
  Buffer runs_;
  BlockSorter sorter_;
  RankedBlock ranked_;
  GroupCodes codes_;
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_BLOCK_H_
