// A cheap look at bytes, from which codecs choose how to encode them.
#ifndef PYCKPT_PROBE_H_
#define PYCKPT_PROBE_H_

#include "bytes.h"

namespace pyckpt {

// True when a match finder would pay: in sampled windows, enough positions
// repeat four bytes seen shortly before. Mantissas are noise and say no; zeros,
// integers and text say yes.
bool HasRepeats(Span bytes);

}  // namespace pyckpt

#endif  // PYCKPT_PROBE_H_
