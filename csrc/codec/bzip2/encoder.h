// bzip2: one stream whose blocks are made in parallel and joined bit by bit. Blocks are
// independent. The stream adds a header, an end mark and a checksum that is combined from those of
// the blocks.
#ifndef PYCKPT_CODEC_BZIP2_ENCODER_H_
#define PYCKPT_CODEC_BZIP2_ENCODER_H_

#include <memory>

#include "codec/codec.h"

namespace pyckpt::bzip2 {

// The level is the block size in units of 100 kB, as in bzip2 -1 to -9.
class Bzip2Codec final : public Codec {
 public:
  // One full block of level 9 if run-length coding does not change its length.
  std::size_t chunk_nbytes() const override { return 899'981; }
  std::unique_ptr<EncodedChunk> NewChunk() const override;
  std::unique_ptr<ChunkEncoder> NewEncoder(int level) const override;
  std::unique_ptr<StreamJoiner> NewJoiner() const override;
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_ENCODER_H_
