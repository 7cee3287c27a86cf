// gzip (RFC 1952). Archives with a chunk index (codec/gzip/chunk_index.h) are decoded chunk by
// chunk. Any other file, with one member or many, is decoded from start to end: by zlib, or by
// libdeflate, which is faster, if the whole of one member is wanted.
//
// Zeros may follow the last member, as on tapes. The chunk index is part of the decoded stream: it
// is the last block.
#ifndef PYCKPT_CODEC_GZIP_DECODER_H_
#define PYCKPT_CODEC_GZIP_DECODER_H_

#include <memory>

#include "codec/decoder.h"

namespace pyckpt::gzip {

class GzipDecompressor final : public Decompressor {
 public:
  bool Recognizes(Span file) const override;
  std::unique_ptr<BlockStream> OpenBlocks(const FileBytes& stored) const override;
  std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const override;
  bool IsIndex(Span raw) const override;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_DECODER_H_
