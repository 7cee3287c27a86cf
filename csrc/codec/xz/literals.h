// LZMA2 without matches: what float tensors want.
//
// A byte of a float is foretold by its place in the element and by the byte
// before it, never by an earlier match. LZMA's literal coder models just that:
// lp bits of the position and the lc top bits of the byte before choose among
// adaptive binary trees, whose decisions a range coder writes.
//
// The bytes written do not depend on the CPU.
#ifndef PYCKPT_CODEC_XZ_LITERALS_H_
#define PYCKPT_CODEC_XZ_LITERALS_H_

#include <cstdint>
#include <memory>

#include "base/bytes.h"
#include "codec/xz/lanes.h"
#include "codec/xz/model.h"

namespace pyckpt::xz {

// 4-byte elements need two bits to tell their bytes apart, 2-byte ones one and
// 8-byte ones three; most of the others go to the byte before. Single bytes may
// be wider elements in disguise: that is looked into.
LiteralBits ChooseLiteralBits(Span raw, std::uint32_t element_nbytes);

// One per worker, which holds 4.2 MB of probabilities (with AVX2 only) and 1.8 MB
// of code.
class Lzma2LiteralEncoder {
 public:
  // A group of LZMA2 chunks is coded at once, and stands uncompressed where
  // coding would not shorten it. Blocks of whole groups are the fastest.
  static constexpr std::size_t kGroupNbytes = kLanes * kLaneNbytes;

  Lzma2LiteralEncoder();

  // Room that Encode() may need.
  static std::size_t Bound(std::size_t raw_nbytes);

  // Writes raw as the LZMA2 data of one block, end mark included, and returns
  // its end.
  std::uint8_t* Encode(Span raw, LiteralBits bits, std::uint8_t* out);

 private:
  std::size_t EncodeGroup(Span group, std::uint32_t previous, LiteralBits bits);

  std::unique_ptr<LiteralModel> model_;
  std::unique_ptr<LaneEncoder> lanes_;  // none without AVX2
  LaneCodes codes_;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_LITERALS_H_
