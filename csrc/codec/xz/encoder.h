// xz: one stream of many blocks (the .xz file format, version 1.2), made in parallel. Block headers
// contain both sizes, so xz -T and other programs can decode in parallel too.
#ifndef PYCKPT_CODEC_XZ_ENCODER_H_
#define PYCKPT_CODEC_XZ_ENCODER_H_

#include <memory>

#include "codec/codec.h"
#include "codec/xz/literals.h"

namespace pyckpt::xz {

// At every level, chunks of floats are coded as literals (codec/xz/literals.h). Where a match
// finder pays, liblzma runs with the level as its preset.
class XzCodec final : public Codec {
 public:
  std::size_t chunk_nbytes() const override { return 4 * Lzma2LiteralEncoder::kGroupNbytes; }
  std::unique_ptr<EncodedChunk> NewChunk() const override;
  std::unique_ptr<ChunkEncoder> NewEncoder(int level) const override;
  std::unique_ptr<StreamJoiner> NewJoiner() const override;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_ENCODER_H_
