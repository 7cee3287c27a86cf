// The Huffman codes of a dynamic block (RFC 1951, section 3.2.7).
#ifndef PYCKPT_CODEC_GZIP_BLOCK_CODE_H_
#define PYCKPT_CODEC_GZIP_BLOCK_CODE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/bit_writer.h"
#include "codec/huffman.h"
#include "codec/plan.h"
#include "codec/repeats.h"

namespace pyckpt::gzip {

// The codes of a dynamic block for one planned part of a chunk. They are made from the plan's
// sample. Literals that the sample missed get codes too.
class BlockCode {
 public:
  // next is the index of the first repeat that may end after the block's begin.
  BlockCode(const BlockPlan& plan, const std::vector<Repeat>& repeats, std::size_t next);

  // The size of the block in bits, estimated from the sample.
  std::uint64_t nbits() const { return nbits_; }

  void WriteHeader(BitWriter* writer) const;
  // The codes of the 256 literals, then of end of block and of match lengths.
  const std::vector<HuffmanCode>& literals() const { return literals_; }
  void PutMatch(std::size_t nbytes, std::size_t distance, BitWriter* writer) const;
  void PutEnd(BitWriter* writer) const;

 private:
  // One symbol of the header: a code length, or a run of equal ones.
  struct LengthRun {
    std::uint8_t symbol;
    std::uint8_t extra;
    std::uint8_t extra_nbits;
  };
  static std::vector<LengthRun> RunsOf(const std::vector<std::uint8_t>& lengths);

  std::vector<HuffmanCode> literals_;   // and of end of block, and of match lengths
  std::vector<HuffmanCode> distances_;  // one, of length 0, if there are no matches
  std::vector<LengthRun> length_runs_;  // the code lengths of both
  std::vector<HuffmanCode> lengths_;    // the code for length_runs_
  std::uint64_t nbits_ = 0;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_BLOCK_CODE_H_
