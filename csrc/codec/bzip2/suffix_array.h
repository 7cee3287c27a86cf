// Suffix sorting in linear time for any input.
#ifndef PYCKPT_CODEC_BZIP2_SUFFIX_ARRAY_H_
#define PYCKPT_CODEC_BZIP2_SUFFIX_ARRAY_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

// Fills suffixes with the start offsets of all suffixes of text, smallest suffix first. A suffix
// that is a prefix of another is the smaller one. text has less than 2^31 bytes. While it runs, it
// needs up to 8 more bytes of memory per byte of text.
void BuildSuffixArray(Span text, std::vector<std::int32_t>* suffixes);

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_SUFFIX_ARRAY_H_
