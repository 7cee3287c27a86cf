// Decodes LZMA2 without matches, as Lzma2LiteralEncoder writes it for floats.
#ifndef PYCKPT_CODEC_XZ_LITERAL_DECODER_H_
#define PYCKPT_CODEC_XZ_LITERAL_DECODER_H_

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "codec/xz/decoding_lane.h"
#include "codec/xz/decoding_vectors.h"
#include "codec/xz/lane_feeder.h"

namespace pyckpt::xz {

// One per worker. Takes 170 kB of memory.
class Lzma2LiteralDecoder {
 public:
  Lzma2LiteralDecoder();

  // How many blocks keep all lanes busy.
  static std::size_t most_in_turn();

  // Decodes all tasks, as many at once as are fast. The result does not depend on how many.
  void Decode(std::vector<LiteralTask>* tasks);

 private:
  static constexpr std::size_t kLanes = kVectorLanes;

  // Lets the kernels decode nbytes bytes of each lane that is not idle.
  void Step(std::size_t nbytes);

  std::unique_ptr<std::array<DecodingLane, kLanes>> lanes_;
  std::array<LaneFeeder, kLanes> feeders_;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_LITERAL_DECODER_H_
