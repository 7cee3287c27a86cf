// xz (the .xz file format, version 1.2), by the blocks that the streams' indexes
// list, and .lzma, which came before it. liblzma decodes, with all its filters.
//
// Several streams and the padding between them are accepted, checks of the kinds
// CRC-32, CRC-64, SHA-256 and none. A .lzma file has no checksum at all: a damage
// that leaves its code possible goes unseen.
#ifndef PYCKPT_CODEC_XZ_DECODER_H_
#define PYCKPT_CODEC_XZ_DECODER_H_

#include <memory>

#include "codec/decoder.h"

namespace pyckpt::xz {

class XzDecompressor final : public Decompressor {
 public:
  bool Recognizes(Span file) const override;
  std::unique_ptr<BlockStream> OpenBlocks(Span file) const override;
  std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const override;
};

class LzmaDecompressor final : public Decompressor {
 public:
  // The format has no magic: by what xz too expects of its fields.
  bool Recognizes(Span file) const override;
  std::unique_ptr<BlockStream> OpenBlocks(Span file) const override;
  std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const override;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_DECODER_H_
