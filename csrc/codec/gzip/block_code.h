// The Huffman codes of a dynamic block (RFC 1951, section 3.2.7).
#ifndef PYCKPT_CODEC_GZIP_BLOCK_CODE_H_
#define PYCKPT_CODEC_GZIP_BLOCK_CODE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/gzip/bit_writer.h"
#include "codec/gzip/plan.h"
#include "codec/huffman.h"
#include "codec/repeats.h"

namespace pyckpt::gzip {

// The code of a dynamic block, for the part of a chunk that a plan says. It comes
// from the plan's sample: symbols that it missed get codes all the same.
class BlockCode {
 public:
  // next is the first repeat that may reach behind the block's begin.
  BlockCode(const BlockPlan& plan, const std::vector<Repeat>& repeats, std::size_t next);

  // The size of the block, as the sample foretells it.
  std::uint64_t nbits() const { return nbits_; }

  void WriteHeader(BitWriter* writer) const;
  // Of the 256 bytes, and what follows them.
  const std::vector<HuffmanCode>& literals() const { return literals_; }
  void PutMatch(std::size_t nbytes, std::size_t distance, BitWriter* writer) const;
  void PutEnd(BitWriter* writer) const;

 private:
  // How the header writes a code's length, or a run of equal ones.
  struct LengthRun {
    std::uint8_t symbol;
    std::uint8_t extra;
    std::uint8_t extra_nbits;
  };
  static std::vector<LengthRun> RunsOf(const std::vector<std::uint8_t>& lengths);

  std::vector<HuffmanCode> literals_;   // and end of block, and lengths
  std::vector<HuffmanCode> distances_;  // one unused if there are no matches
  std::vector<LengthRun> length_runs_;  // the lengths of both
  std::vector<HuffmanCode> lengths_;    // the code that those are written in
  std::uint64_t nbits_ = 0;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_BLOCK_CODE_H_
