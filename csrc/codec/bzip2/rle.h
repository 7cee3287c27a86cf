// bzip2's first stage: a run of 4 to 255 equal bytes becomes four of them and a count of the rest.
#ifndef PYCKPT_CODEC_BZIP2_RLE_H_
#define PYCKPT_CODEC_BZIP2_RLE_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

struct CodedRuns {
  std::size_t raw_nbytes;    // how many bytes of the input were taken
  std::size_t coded_nbytes;  // how many bytes were written
};

// Codes the longest prefix of raw that takes at most limit bytes, and never only a part of a run.
// limit must be at least 5, so that the first run fits. out must have room for limit bytes.
CodedRuns EncodeRuns(Span raw, std::size_t limit, std::uint8_t* out);

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_RLE_H_
