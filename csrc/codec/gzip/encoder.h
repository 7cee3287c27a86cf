// gzip: one member (RFC 1952) whose deflate data (RFC 1951) is made in parallel. Each chunk ends on
// a byte boundary, if necessary by an empty stored block.
#ifndef PYCKPT_CODEC_GZIP_ENCODER_H_
#define PYCKPT_CODEC_GZIP_ENCODER_H_

#include <memory>

#include "codec/codec.h"

namespace pyckpt::gzip {

inline constexpr std::size_t kChunkNbytes = std::size_t{1} << 20;

// Where the chunk index of a file is (chunk_index.h).
enum class IndexPlace {
  kBehindTar,  // at the member's end, where tar readers no longer read
  kOwnMember,  // in the header of a second, empty member: the decoded bytes are the file's alone
};

// Level 0 stores. All other levels encode floats as literals, with Huffman codes made for them.
// Where a match finder pays, libdeflate encodes with this level. From level 7 on, blocks are
// divided more finely.
class GzipCodec final : public Codec {
 public:
  explicit GzipCodec(IndexPlace index_place) : index_place_(index_place) {}

  std::size_t chunk_nbytes() const override { return kChunkNbytes; }
  std::unique_ptr<EncodedChunk> NewChunk() const override;
  std::unique_ptr<ChunkEncoder> NewEncoder(int level) const override;
  std::unique_ptr<StreamJoiner> NewJoiner() const override;

 private:
  IndexPlace index_place_;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_ENCODER_H_
