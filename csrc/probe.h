// A cheap look at a chunk, from which codecs choose how to encode it.
#ifndef PYCKPT_PROBE_H_
#define PYCKPT_PROBE_H_

#include <array>
#include <cstdint>

#include "bytes.h"

namespace pyckpt {

// Byte counts of a sample: spread evenly, about one sixteenth of the whole.
using Histogram = std::array<std::uint32_t, 256>;
Histogram SampleHistogram(Span bytes);

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

#endif  // PYCKPT_PROBE_H_
