#include "codec/store/encoder.h"

namespace pyckpt::store {
namespace {

class StoreEncoder final : public ChunkEncoder {
 public:
  void Encode(const Chunk& chunk, EncodedChunk* out) override {
    out->spans.clear();
    for (const Piece& piece : chunk.pieces) out->spans.push_back(piece.span);
    out->nbytes = out->raw_nbytes = chunk.nbytes;
  }
};

}  // namespace

std::unique_ptr<ChunkEncoder> StoreCodec::NewEncoder(int /*level*/) const {
  return std::make_unique<StoreEncoder>();
}

std::unique_ptr<StreamJoiner> StoreCodec::NewJoiner() const {
  return std::make_unique<StreamJoiner>();
}

}  // namespace pyckpt::store
