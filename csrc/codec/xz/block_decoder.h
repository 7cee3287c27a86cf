// Decodes one xz block: our way if it is of floats, and by liblzma with all its filters.
#ifndef PYCKPT_CODEC_XZ_BLOCK_DECODER_H_
#define PYCKPT_CODEC_XZ_BLOCK_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/bytes.h"
#include "codec/decoder.h"
#include "codec/xz/coder.h"
#include "codec/xz/literal_decoder.h"
#include "codec/xz/stream_index.h"

namespace pyckpt::xz {

class XzBlockDecoder final : public BlockDecoder {
 public:
  explicit XzBlockDecoder(std::shared_ptr<const StreamChecks> checks)
      : checks_(std::move(checks)) {}

  DecodedBlock Decode(Span file, const CodeBlock& block, std::uint8_t* out,
                      std::size_t capacity) override;

 private:
  // Of the block that begins at begin.
  lzma_check CheckAt(std::uint64_t begin) const;
  // Our own way, for blocks of floats. False if the block is none of those, or if
  // anything about it is wrong.
  bool DecodeLiterals(Span file, std::uint64_t begin, const lzma_block& header, std::uint8_t* out);

  std::shared_ptr<const StreamChecks> checks_;
  Coder coder_;
  Lzma2LiteralDecoder literals_;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_BLOCK_DECODER_H_
