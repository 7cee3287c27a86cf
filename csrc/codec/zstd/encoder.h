// zstd (RFC 8878): frames of at most 1 MiB, made in parallel, and a seek table that says where they
// are. Each frame says its size and has a checksum.
#ifndef PYCKPT_CODEC_ZSTD_ENCODER_H_
#define PYCKPT_CODEC_ZSTD_ENCODER_H_

#include <memory>

#include "codec/codec.h"

namespace pyckpt::zstd {

inline constexpr std::size_t kChunkNbytes = std::size_t{1} << 20;

// At every level, floats are encoded as literals, with Huffman codes made for them. Where a match
// finder pays, libzstd encodes with this level.
class ZstdCodec final : public Codec {
 public:
  std::size_t chunk_nbytes() const override { return kChunkNbytes; }
  std::unique_ptr<EncodedChunk> NewChunk() const override;
  std::unique_ptr<ChunkEncoder> NewEncoder(int level) const override;
  std::unique_ptr<StreamJoiner> NewJoiner() const override;
};

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_ENCODER_H_
