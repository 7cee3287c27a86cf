// The sequences of a block: where literals end and earlier bytes are repeated (RFC 8878, section
// 3.1.1.3.2).
#ifndef PYCKPT_CODEC_ZSTD_SEQUENCES_H_
#define PYCKPT_CODEC_ZSTD_SEQUENCES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyckpt::zstd {

// Literals, then a match.
struct Sequence {
  std::size_t literal_nbytes;
  std::size_t match_nbytes;  // at least kShortestRepeat
  std::size_t distance;
};

// Writes the section with the codes that every decoder knows. There are few sequences, so codes of
// their own would not pay. Returns the end. The section has at most 8 bytes, and 9 for each
// sequence; BitWriter::kSlackNbytes more may be overwritten.
std::uint8_t* WriteSequences(const std::vector<Sequence>& sequences, std::uint8_t* out);

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_SEQUENCES_H_
