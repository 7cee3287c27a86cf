// Inverse of the block sort (Burrows and Wheeler, 1994).
#ifndef PYCKPT_CODEC_BZIP2_INVERSE_H_
#define PYCKPT_CODEC_BZIP2_INVERSE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

// Keeps its memory from block to block: about five bytes for each of the block.
class BlockUnsorter {
 public:
  // Puts the bytes whose sorted rotations end with sorted, at least one, into
  // the order they had. origin is the rank of the rotation that is the block
  // itself, and below nbytes. counts says how often each byte occurs. Any sorted
  // bytes are fine: out gets as many.
  void Unsort(Span sorted, std::uint32_t origin, const std::array<std::uint32_t, 256>& counts,
              std::uint8_t* out);

 private:
  // A stretch of the block that one walk decodes; its length is known at its end.
  struct Segment {
    std::uint32_t start = 0;  // rank
    std::uint32_t first_piece = 0;
    std::uint32_t nbytes = 0;
    std::uint32_t next = 0;  // the rank at which the segment behind it starts
  };

  void Link(Span sorted, const std::array<std::uint32_t, 256>& counts);
  void Walk();

  std::vector<std::uint32_t> links_;
  std::vector<Segment> segments_;
  std::vector<std::uint8_t> pieces_;
  std::vector<std::uint32_t> piece_after_;
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_INVERSE_H_
