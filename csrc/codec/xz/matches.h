// LZMA2 with matches, by liblzma: what integers, text and zeros want.
#ifndef PYCKPT_CODEC_XZ_MATCHES_H_
#define PYCKPT_CODEC_XZ_MATCHES_H_

#include <lzma.h>

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "codec/xz/model.h"

namespace pyckpt::xz {

// liblzma's preset, with the literals modelled as our own coder does and a
// dictionary that holds raw_nbytes.
lzma_options_lzma MatchOptions(int preset, LiteralBits bits, std::size_t raw_nbytes);

// Throws unless status is LZMA_OK. doing ends the sentence "liblzma: ... failed".
void RequireLzma(lzma_ret status, const char* doing);

// Room that WriteLzma2Matches() may need.
std::size_t Lzma2MatchesBound(std::size_t raw_nbytes);

// Writes raw as the LZMA2 data of one block, end mark included, and returns its
// end. Where coding does not pay, liblzma writes uncompressed LZMA2 chunks.
std::uint8_t* WriteLzma2Matches(Span raw, lzma_options_lzma options, std::uint8_t* out);

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_MATCHES_H_
