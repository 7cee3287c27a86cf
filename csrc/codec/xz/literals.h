// LZMA2 without matches, for float tensors.
//
// A byte of a float is predicted by its position in the element and by the byte before it, never by
// an earlier match. LZMA's literal coder does just that: the lp low bits of the position and the lc
// top bits of the byte before select an adaptive binary tree. A range coder writes the tree's
// decisions.
//
// The output does not depend on the CPU.
#ifndef PYCKPT_CODEC_XZ_LITERALS_H_
#define PYCKPT_CODEC_XZ_LITERALS_H_

#include <cstdint>
#include <memory>

#include "base/bytes.h"
#include "codec/xz/lanes.h"
#include "codec/xz/model.h"

namespace pyckpt::xz {

// Chooses lc and lp. Bytes of 2-byte elements need one bit of the position, those of 4-byte
// elements two, those of 8-byte elements three. The rest of the four bits, or most of it, go to the
// byte before. Single bytes may be wider elements stored as bytes, so raw is examined.
LiteralBits ChooseLiteralBits(Span raw, std::uint32_t element_nbytes);

// One per worker. Takes 4.2 MB of memory for probabilities (with AVX2 only) and 1.8 MB for code.
class Lzma2LiteralEncoder {
 public:
  // Raw bytes of a group of LZMA2 chunks. A group is coded at once, or stored uncompressed if
  // coding does not make it shorter. Blocks that consist of full groups are the fastest.
  static constexpr std::size_t kGroupNbytes = kLanes * kLaneNbytes;

  Lzma2LiteralEncoder();

  // How many bytes Encode() may write at most.
  static std::size_t Bound(std::size_t raw_nbytes);

  // Writes raw to out as the LZMA2 data of one block, with the end mark. Returns the end of it.
  std::uint8_t* Encode(Span raw, LiteralBits bits, std::uint8_t* out);

 private:
  std::size_t EncodeGroup(Span group, std::uint32_t previous, LiteralBits bits);

  std::unique_ptr<LiteralModel> model_;
  std::unique_ptr<LaneEncoder> lanes_;  // null without AVX2
  LaneCodes codes_;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_LITERALS_H_
