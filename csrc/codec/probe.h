// A cheap look at bytes, from which codecs choose how to encode them.
#ifndef PYCKPT_CODEC_PROBE_H_
#define PYCKPT_CODEC_PROBE_H_

#include <cstddef>

#include "base/bytes.h"

namespace pyckpt {

// True when a match finder would pay: in sampled windows, enough positions
// repeat repeat_nbytes (at most four) seen shortly before. Mantissas are noise
// and say no; zeros, integers and text say yes.
bool HasRepeats(Span bytes, std::size_t repeat_nbytes = 4);

// True when stretches of 16 bytes recur from more than a few KiB away, as in
// tiled and copied tensors: out of HasRepeats()'s sight. They are looked for at
// multiples of eight bytes.
bool HasFarRepeats(Span bytes);

// True when bytes at some residues modulo four differ from those at others, as
// in floats that pass for bytes.
bool HasPositions(Span bytes);

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_PROBE_H_
