// Deflate without matches: what float tensors want. Their mantissas do not
// repeat, so all there is to gain lies in the byte frequencies.
#ifndef PYCKPT_DEFLATE_LITERALS_H_
#define PYCKPT_DEFLATE_LITERALS_H_

#include <cstdint>
#include <vector>

#include "bytes.h"
#include "huffman.h"
#include "probe.h"

namespace pyckpt::deflate {

// A code for all 256 literals and the end of block, built from a sample:
// symbols that the sample missed are there all the same.
class LiteralCode {
 public:
  explicit LiteralCode(const Histogram& sample);

  // The block's size as the sample foretells it, in bytes.
  std::uint64_t EstimateNbytes(std::size_t raw_nbytes) const;

  const std::vector<HuffmanCode>& codes() const { return codes_; }  // 256 is the end

 private:
  std::vector<HuffmanCode> codes_;
  double mean_bits_ = 8;
};

// No symbol takes more bits, so four of them fit a 64-bit word with a byte to
// spare.
inline constexpr int kLongestLiteral = 14;

// Room that WriteLiteralBlock and the empty stored block may need.
std::size_t LiteralBlockBound(std::size_t raw_nbytes);

// Writes one dynamic block of literals, not the last of its stream, and an
// empty stored block that fills up the last byte. Returns the end of both.
std::uint8_t* WriteLiteralBlock(Span raw, const LiteralCode& code, std::uint8_t* out);

// The same as stored blocks: 5 bytes for each 65,535.
std::size_t StoredBlocksNbytes(std::size_t raw_nbytes);
std::uint8_t* WriteStoredBlocks(Span raw, std::uint8_t* out);

}  // namespace pyckpt::deflate

#endif  // PYCKPT_DEFLATE_LITERALS_H_
