#include "codec/xz/lzma_encoder.h"

#include <new>

#include "base/error.h"
#include "codec/chunk.h"
#include "codec/typed_codec.h"
#include "codec/xz/coder.h"

namespace pyckpt::xz {
namespace {

struct LzmaChunk final : EncodedChunk {
  int level = 0;
};

// Hands the bytes to the joiner as they are.
class RawEncoder final : public TypedEncoder<LzmaChunk> {
 public:
  explicit RawEncoder(int level) : level_(level) {}

 protected:
  void EncodeTyped(const Chunk& chunk, LzmaChunk* out) override {
    out->level = level_;
    out->spans.clear();
    for (const Piece& piece : chunk.pieces) out->spans.push_back(piece.span);
    out->nbytes = out->raw_nbytes = chunk.nbytes;
  }

 private:
  int level_;
};

class LzmaJoiner final : public TypedJoiner<LzmaChunk> {
 public:
  std::string End() override {
    if (!started_) Start(LZMA_PRESET_DEFAULT);
    Buffer buffer;
    const std::size_t used = Run(LZMA_FINISH, &buffer, 0);
    return {reinterpret_cast<const char*>(buffer.data()), used};
  }

 protected:
  void AppendTyped(LzmaChunk* chunk) override {
    if (!started_) Start(static_cast<std::uint32_t>(chunk->level));
    std::size_t used = 0;
    for (const Span& raw : chunk->spans) {
      coder_.stream.next_in = raw.data;
      coder_.stream.avail_in = raw.nbytes;
      used = Run(LZMA_RUN, &chunk->buffer, used);
    }
    chunk->UseBuffer(used);
  }

 private:
  static constexpr std::size_t kStepNbytes = std::size_t{64} << 10;

  void Start(std::uint32_t level) {
    started_ = true;
    lzma_options_lzma options{};
    if (lzma_lzma_preset(&options, level)) {
      throw Error(ErrorKind::kArgument, "lzma: no such level");
    }
    Require(lzma_alone_encoder(&coder_.stream, &options));
  }

  static void Require(lzma_ret status) {
    if (status == LZMA_MEM_ERROR) throw std::bad_alloc();
    if (status != LZMA_OK && status != LZMA_STREAM_END) {
      throw Error(ErrorKind::kCodec, "lzma: liblzma failed to encode");
    }
  }

  // Encodes the input that the stream has, and with LZMA_FINISH all that it holds back. Writes to
  // buffer behind its first used bytes, and returns how many are used then.
  std::size_t Run(lzma_action action, Buffer* buffer, std::size_t used) {
    lzma_ret status = LZMA_OK;
    do {
      coder_.stream.next_out = buffer->Reserve(used + kStepNbytes) + used;
      coder_.stream.avail_out = kStepNbytes;
      status = lzma_code(&coder_.stream, action);
      Require(status);
      used += kStepNbytes - coder_.stream.avail_out;
    } while (action == LZMA_RUN ? coder_.stream.avail_in != 0 || coder_.stream.avail_out == 0
                                : status != LZMA_STREAM_END);
    return used;
  }

  Coder coder_;
  bool started_ = false;
};

}  // namespace

std::unique_ptr<EncodedChunk> LzmaCodec::NewChunk() const { return std::make_unique<LzmaChunk>(); }

std::unique_ptr<ChunkEncoder> LzmaCodec::NewEncoder(int level) const {
  return std::make_unique<RawEncoder>(level);
}

std::unique_ptr<StreamJoiner> LzmaCodec::NewJoiner() const {
  return std::make_unique<LzmaJoiner>();
}

}  // namespace pyckpt::xz
