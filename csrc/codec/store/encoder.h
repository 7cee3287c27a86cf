// No compression: the chunk's pieces are the code. They are written without a copy.
#ifndef PYCKPT_CODEC_STORE_ENCODER_H_
#define PYCKPT_CODEC_STORE_ENCODER_H_

#include <memory>

#include "codec/codec.h"

namespace pyckpt::store {

class StoreCodec final : public Codec {
 public:
  std::size_t chunk_nbytes() const override { return std::size_t{4} << 20; }
  bool stores() const override { return true; }
  std::unique_ptr<ChunkEncoder> NewEncoder(int level) const override;
  std::unique_ptr<StreamJoiner> NewJoiner() const override;
};

}  // namespace pyckpt::store

#endif  // PYCKPT_CODEC_STORE_ENCODER_H_
