// Decodes LZMA2 without matches, as Lzma2LiteralEncoder writes it for floats. The decisions of
// these bytes are hard to predict, so none of them is a branch here.
#ifndef PYCKPT_CODEC_XZ_LITERAL_DECODER_H_
#define PYCKPT_CODEC_XZ_LITERAL_DECODER_H_

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "codec/xz/model.h"

namespace pyckpt::xz {

// One per worker. Takes 8 kB of memory.
class Lzma2LiteralDecoder {
 public:
  // This many bytes must be readable after the code. They are read, but do not change the result.
  static constexpr std::size_t kSlackNbytes = 20;

  // Decodes all of code, a block's LZMA2 data, to exactly out_nbytes bytes at out. Returns false if
  // code is damaged, has matches, or uses pb or more than lc + lp = 4; liblzma should then decode
  // it. The contents of out are unspecified after false. Compares no checksum.
  bool Decode(Span code, std::uint8_t* out, std::size_t out_nbytes);

 private:
  static constexpr std::size_t kTrees = 16;  // 2^(lc + lp)

  void ResetModel();
  bool DecodeChunk(Span code, std::uint8_t* out, std::size_t position, std::size_t nbytes);

  // In a tree, node 1 is the root; nodes 2n and 2n + 1 are the children of node n.
  std::array<std::array<std::uint16_t, 256>, kTrees> trees_;
  std::uint32_t is_literal_ = kEven;
  LiteralBits bits_{0, 0};
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_LITERAL_DECODER_H_
