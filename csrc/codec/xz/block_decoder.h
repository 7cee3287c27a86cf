// Decodes xz blocks: with our own decoder, several in turn, those that have literals only (as we
// write floats); the others with liblzma and all its filters.
#ifndef PYCKPT_CODEC_XZ_BLOCK_DECODER_H_
#define PYCKPT_CODEC_XZ_BLOCK_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

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
  void DecodeInTurn(Span file, std::vector<BlockTask>* tasks) override;

 private:
  // The kind of check of the block that begins at byte begin of the file.
  lzma_check CheckAt(std::uint64_t begin) const;

  std::shared_ptr<const StreamChecks> checks_;
  Coder coder_;
  Lzma2LiteralDecoder literals_;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_BLOCK_DECODER_H_
