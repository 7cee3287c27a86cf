// gzip: one member (RFC 1952) whose deflate data (RFC 1951) is made in parallel.
// Each chunk ends with an empty stored block, so the next one starts on a byte.
#ifndef PYCKPT_CODEC_GZIP_ENCODER_H_
#define PYCKPT_CODEC_GZIP_ENCODER_H_

#include <memory>

#include "codec/codec.h"

namespace pyckpt::gzip {

inline constexpr std::size_t kChunkNbytes = std::size_t{1} << 20;

// Level 0 stores. At the others floats become literals with Huffman codes of
// their own, whatever the level; where a match finder pays, libdeflate runs at this
// level.
class GzipCodec final : public Codec {
 public:
  std::size_t chunk_nbytes() const override { return kChunkNbytes; }
  std::unique_ptr<EncodedChunk> NewChunk() const override;
  std::unique_ptr<ChunkEncoder> NewEncoder(int level) const override;
  std::unique_ptr<StreamJoiner> NewJoiner() const override;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_ENCODER_H_
