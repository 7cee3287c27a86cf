// LZMA2 with matches, made by liblzma. Good for integers, text and zeros.
#ifndef PYCKPT_CODEC_XZ_MATCHES_H_
#define PYCKPT_CODEC_XZ_MATCHES_H_

#include <lzma.h>

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "codec/xz/model.h"

namespace pyckpt::xz {

// liblzma's preset, but literals are modelled as in our own coder (lc, lp), and the dictionary is
// no larger than raw_nbytes needs.
lzma_options_lzma MatchOptions(int preset, LiteralBits bits, std::size_t raw_nbytes);

// Throws std::bad_alloc if liblzma has no memory, and an Error of kCodec for all but LZMA_OK. doing
// is what failed, for the message "liblzma: <doing> failed with code <status>".
void RequireLzma(lzma_ret status, const char* doing);

// How many bytes WriteLzma2Matches() may write at most.
std::size_t Lzma2MatchesBound(std::size_t raw_nbytes);

// Writes raw to out as the LZMA2 data of one block, with the end mark. Returns the end of it. Where
// coding does not pay, liblzma writes uncompressed LZMA2 chunks.
std::uint8_t* WriteLzma2Matches(Span raw, lzma_options_lzma options, std::uint8_t* out);

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_MATCHES_H_
