// Turns a chunk's pieces into few contiguous runs: large pieces stay where they are, small
// neighbours are copied together.
#ifndef PYCKPT_CODEC_RUNS_H_
#define PYCKPT_CODEC_RUNS_H_

#include <algorithm>
#include <cstddef>
#include <vector>

#include "base/bytes.h"
#include "codec/chunk.h"

namespace pyckpt {

struct Run {
  std::size_t begin;  // offset in the chunk
  Span bytes;

  std::size_t end() const { return begin + bytes.nbytes; }
};

// Calls part(bytes) for each run that has bytes of the chunk's range [begin, end), with just these
// bytes.
template <typename Part>
void ForEachPart(const std::vector<Run>& runs, std::size_t begin, std::size_t end, Part part) {
  for (const Run& run : runs) {
    const std::size_t from = std::max(begin, run.begin);
    const std::size_t to = std::min(end, run.end());
    if (from < to) part(Span{run.bytes.data + (from - run.begin), to - from});
  }
}

class Gatherer {
 public:
  // A value for in_place_nbytes: all pieces become one run.
  static constexpr auto kAll = static_cast<std::size_t>(-1);

  // The chunk's runs, in order and without gaps. Neighbouring pieces that are all shorter than
  // in_place_nbytes become one run. Valid until the next call, while the chunk's pieces are.
  const std::vector<Run>& Gather(const Chunk& chunk, std::size_t in_place_nbytes);

  // The bytes [begin, end) of those runs in contiguous memory. Copies them if they are in several
  // runs. Valid until the next call.
  Span Joined(std::size_t begin, std::size_t end);

 private:
  Buffer gathered_;
  Buffer joined_;
  std::vector<Run> runs_;
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_RUNS_H_
