// Base classes of encoders and joiners for a codec that has its own chunk type (Own, which derives
// from EncodedChunk). They cast to that type, so no other code sees it.
#ifndef PYCKPT_CODEC_TYPED_CODEC_H_
#define PYCKPT_CODEC_TYPED_CODEC_H_

#include "codec/codec.h"
#include "codec/runs.h"

namespace pyckpt {

template <typename Own>
class TypedEncoder : public ChunkEncoder {
 public:
  void Encode(const Chunk& chunk, EncodedChunk* out) final {
    EncodeTyped(chunk, static_cast<Own*>(out));
  }

 protected:
  virtual void EncodeTyped(const Chunk& chunk, Own* out) = 0;
};

// For encoders that need contiguous bytes: gathers the pieces first.
template <typename Own>
class ContiguousEncoder : public TypedEncoder<Own> {
 protected:
  void EncodeTyped(const Chunk& chunk, Own* out) final {
    const Span raw = gatherer_.Gather(chunk, Gatherer::kAll).front().bytes;
    out->raw_nbytes = raw.nbytes;
    EncodeBytes(raw, chunk, out);
  }

  // raw has all bytes of chunk.
  virtual void EncodeBytes(Span raw, const Chunk& chunk, Own* out) = 0;

 private:
  Gatherer gatherer_;
};

template <typename Own>
class TypedJoiner : public StreamJoiner {
 public:
  void Append(EncodedChunk* chunk) final { AppendTyped(static_cast<Own*>(chunk)); }
  void Settle(EncodedChunk* chunk) const final { SettleTyped(static_cast<Own*>(chunk)); }

 protected:
  virtual void AppendTyped(Own* chunk) = 0;
  virtual void SettleTyped(Own* chunk) const { (void)chunk; }
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_TYPED_CODEC_H_
