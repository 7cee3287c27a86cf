// xz (the .xz file format, version 1.2) and .lzma, its predecessor. xz blocks are found by the
// indexes of the streams. liblzma decodes, with all its filters; blocks of literals only are
// decoded by our own decoder (codec/xz/literal_decoder.h).
//
// Accepts several streams with padding between them. Whatever follows them is not read. Accepts the
// checks CRC-32, CRC-64, SHA-256 and none. A .lzma file has no checksum, so damage that leaves its
// code valid is not noticed. Decoding from start to end accepts dictionaries that need up to 1,600
// MiB of memory.
#ifndef PYCKPT_CODEC_XZ_DECODER_H_
#define PYCKPT_CODEC_XZ_DECODER_H_

#include <memory>

#include "codec/decoder.h"

namespace pyckpt::xz {

class XzDecompressor final : public Decompressor {
 public:
  bool Recognizes(Span file) const override;
  std::unique_ptr<BlockStream> OpenBlocks(const FileBytes& file) const override;
  std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const override;
  // pixz adds one.
  bool IsIndex(Span raw) const override;
};

class LzmaDecompressor final : public Decompressor {
 public:
  // The format has no magic, so this checks that the header's fields have values that xz accepts.
  bool Recognizes(Span file) const override;
  std::unique_ptr<BlockStream> OpenBlocks(const FileBytes& file) const override;
  std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const override;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_DECODER_H_
