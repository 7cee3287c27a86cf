// gzip (RFC 1952): archives with a chunk index (chunk_index.h) chunk by chunk,
// any other file, of one member or many, from start to end.
//
// Zeros may follow the last member, as tapes have them. The chunk index is part
// of the stream, as its last block.
#ifndef PYCKPT_DECODE_GZIP_H_
#define PYCKPT_DECODE_GZIP_H_

#include <memory>

#include "decoder.h"

namespace pyckpt::gzip {

class GzipDecompressor final : public Decompressor {
 public:
  const char* name() const override { return "gzip"; }
  bool Recognizes(Span file) const override;
  std::unique_ptr<BlockStream> OpenBlocks(Span file) const override;
  std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const override;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_DECODE_GZIP_H_
