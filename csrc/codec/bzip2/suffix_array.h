// Suffix sorting in linear time, whatever the input.
#ifndef PYCKPT_CODEC_BZIP2_SUFFIX_ARRAY_H_
#define PYCKPT_CODEC_BZIP2_SUFFIX_ARRAY_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

// Fills suffixes with the starts of all suffixes of text, smallest first; a
// suffix that is a prefix of another is the smaller one. text has less than
// 2^31 bytes. While it works it takes up to 8 bytes more for each byte of text.
void BuildSuffixArray(Span text, std::vector<std::int32_t>* suffixes);

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_SUFFIX_ARRAY_H_
