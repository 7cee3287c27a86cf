// bzip2: finds blocks by their magic, which may begin at any bit, and decodes each block on its
// own.
//
// A file may have several streams. Whatever follows the last one is not read. A magic may occur by
// chance inside a block's code. Such a false "block" is recognized once the real block around it is
// decoded.
#ifndef PYCKPT_CODEC_BZIP2_DECODER_H_
#define PYCKPT_CODEC_BZIP2_DECODER_H_

#include <memory>

#include "codec/decoder.h"

namespace pyckpt::bzip2 {

class Bzip2Decompressor final : public Decompressor {
 public:
  bool Recognizes(Span file) const override;
  std::unique_ptr<BlockStream> OpenBlocks(const FileBytes& stored) const override;
  std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const override;
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_DECODER_H_
