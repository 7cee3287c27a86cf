// Cheap tests on a sample of bytes. Codecs choose by them how to encode.
#ifndef PYCKPT_CODEC_PROBE_H_
#define PYCKPT_CODEC_PROBE_H_

#include <cstddef>

#include "base/bytes.h"

namespace pyckpt {

// True if a match finder would pay: in sampled windows of 1 KiB, enough positions repeat
// repeat_nbytes bytes (1 to 4) seen earlier in the same window. False for mantissas, which are
// noise; true for zeros, integers and text.
bool HasRepeats(Span bytes, std::size_t repeat_nbytes = 4);

// True if stretches of 16 bytes recur at distances of 4 KiB and more, as in tiled and copied
// tensors. HasRepeats() does not see these. Only offsets that are multiples of eight are tested.
bool HasFarRepeats(Span bytes);

// True if the bytes at offsets with different remainders modulo four have different distributions,
// as in floats that are stored as a tensor of bytes.
bool HasPositions(Span bytes);

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_PROBE_H_
