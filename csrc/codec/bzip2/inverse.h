// Inverse of the block sort (Burrows and Wheeler, 1994).
#ifndef PYCKPT_CODEC_BZIP2_INVERSE_H_
#define PYCKPT_CODEC_BZIP2_INVERSE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::bzip2 {

// Keeps its memory between blocks: about five bytes for each byte of the block.
class BlockUnsorter {
 public:
  // Restores a block from sorted, the last bytes of its sorted rotations, and writes it to out. out
  // gets sorted.nbytes bytes, which must be at least 1. origin is the rank of the rotation that is
  // the block itself, below sorted.nbytes. counts says how often each byte occurs in sorted. Any
  // bytes in sorted are safe.
  void Unsort(Span sorted, std::uint32_t origin, const std::array<std::uint32_t, 256>& counts,
              std::uint8_t* out);

 private:
  // A part of the block that one walk decodes. Its length is known when the walk ends.
  struct Segment {
    std::uint32_t start = 0;  // the rank at which it starts
    std::uint32_t first_piece = 0;
    std::uint32_t nbytes = 0;
    std::uint32_t next = 0;  // the rank at which the segment after it starts
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
