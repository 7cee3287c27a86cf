// bzip2: the magics of blocks, at any bit, are searched for, and blocks decoded
// one by one.
//
// A file may have several streams; zeros may follow the last. A magic may stand
// within a block's code by chance: its "block" is known to be none once the
// block before it is decoded.
#ifndef PYCKPT_CODEC_BZIP2_DECODER_H_
#define PYCKPT_CODEC_BZIP2_DECODER_H_

#include <memory>

#include "codec/decoder.h"

namespace pyckpt::bzip2 {

class Bzip2Decompressor final : public Decompressor {
 public:
  bool Recognizes(Span file) const override;
  std::unique_ptr<BlockStream> OpenBlocks(Span file) const override;
  std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const override;
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_DECODER_H_
