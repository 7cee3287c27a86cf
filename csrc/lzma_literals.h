// LZMA2 without matches: what float tensors want.
//
// A byte of a float is foretold by its place in the element and by the byte
// before it, never by an earlier match. LZMA's literal coder models just that:
// lp bits of the position and the lc top bits of the byte before choose among
// adaptive binary trees, whose decisions a range coder writes.
#ifndef PYCKPT_LZMA_LITERALS_H_
#define PYCKPT_LZMA_LITERALS_H_

#include <cstdint>

#include "bytes.h"

namespace pyckpt::xz {

// LZMA's lc and lp; pb is 0. The two share four bits.
struct LiteralBits {
  std::uint32_t context;   // lc
  std::uint32_t position;  // lp
};

// 1-, 2- and 4-byte elements need two bits to tell their bytes apart, 8-byte
// ones three.
LiteralBits ChooseLiteralBits(std::uint32_t element_nbytes);

// Room that WriteLzma2Literals may need.
std::size_t Lzma2LiteralsBound(std::size_t raw_nbytes);

// Writes raw as the LZMA2 data of one block, end mark included, and returns its
// end. Chunks that coding would not shorten stand uncompressed.
std::uint8_t* WriteLzma2Literals(Span raw, LiteralBits bits, std::uint8_t* out);

}  // namespace pyckpt::xz

#endif  // PYCKPT_LZMA_LITERALS_H_
