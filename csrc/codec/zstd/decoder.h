// zstd (RFC 8878). libzstd decodes. Files of several frames that say their sizes are decoded frame
// by frame; a seek table (codec/zstd/seek_table.h) tells where frames are without reading the file.
// Any other file is decoded from start to end.
//
// Frames that decoders skip may stand anywhere. Zeros may follow the last frame, as on tapes.
// Decoding from start to end accepts windows of up to 128 MiB, as zstd does without --long, and
// needs that much memory for them. Dictionaries are not known. A frame without a checksum may be
// damaged without notice, if its code stays valid.
#ifndef PYCKPT_CODEC_ZSTD_DECODER_H_
#define PYCKPT_CODEC_ZSTD_DECODER_H_

#include <memory>

#include "codec/decoder.h"

namespace pyckpt::zstd {

class ZstdDecompressor final : public Decompressor {
 public:
  bool Recognizes(Span file) const override;
  std::unique_ptr<BlockStream> OpenBlocks(const FileBytes& file) const override;
  std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const override;
};

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_DECODER_H_
