// The .lzma format, the predecessor of xz: what the command lzma makes and reads. One range coder
// codes the whole file, and each byte's code depends on all bytes before it. So nothing is made in
// parallel: the joiner encodes.
#ifndef PYCKPT_CODEC_XZ_LZMA_ENCODER_H_
#define PYCKPT_CODEC_XZ_LZMA_ENCODER_H_

#include <memory>

#include "codec/codec.h"

namespace pyckpt::xz {

// liblzma encodes, with the level as its preset. Memory: that of the preset (xz(1): 94 MiB at level
// 6), once, for any number of threads.
class LzmaCodec final : public Codec {
 public:
  std::size_t chunk_nbytes() const override { return std::size_t{256} << 10; }
  std::unique_ptr<EncodedChunk> NewChunk() const override;
  std::unique_ptr<ChunkEncoder> NewEncoder(int level) const override;
  std::unique_ptr<StreamJoiner> NewJoiner() const override;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_LZMA_ENCODER_H_
