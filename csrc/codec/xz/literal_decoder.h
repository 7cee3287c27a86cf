// Decodes LZMA2 without matches, as Lzma2LiteralEncoder writes it of floats: the
// decisions of such bytes are hardly foretold, and here none of them is a branch.
#ifndef PYCKPT_CODEC_XZ_LITERAL_DECODER_H_
#define PYCKPT_CODEC_XZ_LITERAL_DECODER_H_

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "codec/xz/model.h"

namespace pyckpt::xz {

// One per worker, which keeps its 8 kB from block to block.
class Lzma2LiteralDecoder {
 public:
  // What has to follow the code inside the same memory: it is read, and not used.
  static constexpr std::size_t kSlackNbytes = 20;

  // Decodes a block's LZMA2 data, all of code, to exactly out_nbytes at out. False
  // for whatever is not such data: liblzma then says what it is. What is in out
  // after false is unspecified. Compares no checksum.
  bool Decode(Span code, std::uint8_t* out, std::size_t out_nbytes);

 private:
  static constexpr std::size_t kTrees = 16;  // 2^(lc + lp)

  void ResetModel();
  bool DecodeChunk(Span code, std::uint8_t* out, std::size_t position, std::size_t nbytes);

  // Of a tree, node 1 is the root, nodes 2n and 2n + 1 follow node n.
  std::array<std::array<std::uint16_t, 256>, kTrees> trees_;
  std::uint32_t is_literal_ = kEven;
  LiteralBits bits_{0, 0};
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_LITERAL_DECODER_H_
