// The Huffman code of literals, and its description in a block (RFC 8878, section 4.2).
#ifndef PYCKPT_CODEC_ZSTD_LITERAL_CODE_H_
#define PYCKPT_CODEC_ZSTD_LITERAL_CODE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/huffman.h"
#include "codec/plan.h"

namespace pyckpt::zstd {

// The code for the literals of one planned block. It is made from the plan's sample. Bytes that the
// sample missed get codes too.
class LiteralCode {
 public:
  explicit LiteralCode(const BlockPlan& plan);

  // Of the 256 bytes. A code's first bit is its highest: decoders read from the end.
  const std::vector<HuffmanCode>& codes() const { return codes_; }
  // What a decoder makes the code from. Empty if the format has no description of this code; this
  // is so for codes that save nothing.
  const std::vector<std::uint8_t>& description() const { return description_; }
  // How many bytes the planned block's literals take, estimated from the sample.
  std::size_t nbytes() const { return nbytes_; }

 private:
  std::vector<HuffmanCode> codes_;
  std::vector<std::uint8_t> description_;
  std::size_t nbytes_ = 0;
};

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_LITERAL_CODE_H_
