// bzip2's first stage: runs of four to 255 equal bytes become four of them and a
// count of the rest.
#ifndef PYCKPT_CODEC_BZIP2_RLE_H_
#define PYCKPT_CODEC_BZIP2_RLE_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

struct CodedRuns {
  std::size_t raw_nbytes;    // how much of the input was taken
  std::size_t coded_nbytes;  // how much it became
};

// Codes the longest prefix of raw that becomes at most limit bytes; no run is
// taken in part. limit is at least 5, so that the first run fits. Needs limit
// bytes at out.
CodedRuns EncodeRuns(Span raw, std::size_t limit, std::uint8_t* out);

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_RLE_H_
