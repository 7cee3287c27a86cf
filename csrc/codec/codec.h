// The interface of a compression format for writing. decoder.h is the one for reading, and
// formats.h lists all formats.
//
// A codec encodes each chunk on its own (ChunkEncoder, in parallel) and joins the results into one
// member or stream (StreamJoiner, in order). The code of a chunk never refers to another chunk.
#ifndef PYCKPT_CODEC_CODEC_H_
#define PYCKPT_CODEC_CODEC_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "codec/chunk.h"

namespace pyckpt {

// The code (compressed bytes) of one chunk. If a codec's joiner needs more data, the codec derives
// its own type from this one. The object is reused for later chunks.
struct EncodedChunk {
  EncodedChunk() = default;
  EncodedChunk(const EncodedChunk&) = delete;
  EncodedChunk& operator=(const EncodedChunk&) = delete;
  virtual ~EncodedChunk() = default;

  // The code becomes the first used_nbytes of buffer.
  void UseBuffer(std::size_t used_nbytes) {
    spans.assign(1, {buffer.data(), used_nbytes});
    nbytes = used_nbytes;
  }

  Buffer buffer;             // owned by the chunk; spans may point into it
  std::vector<Span> spans;   // the code, in order; valid until the next Encode()
  std::uint64_t nbytes = 0;  // in all spans
  std::uint64_t raw_nbytes = 0;
};

// Each worker has one and is its only user. Keeps its memory between chunks.
class ChunkEncoder {
 public:
  ChunkEncoder() = default;
  ChunkEncoder(const ChunkEncoder&) = delete;
  ChunkEncoder& operator=(const ChunkEncoder&) = delete;
  virtual ~ChunkEncoder() = default;

  // Sets all members of out, which NewChunk() of the same codec made. The caller must keep chunk
  // and out alive and unchanged until out is written, because spans may point into both. Only the
  // joiner may change out.
  virtual void Encode(const Chunk& chunk, EncodedChunk* out) = 0;
};

// One per stream. Begin, Append and End are called one at a time, in stream order, and are cheap
// (except in codec/xz/lzma_encoder.h). Settle may run in parallel, for different chunks.
class StreamJoiner {
 public:
  StreamJoiner() = default;
  StreamJoiner(const StreamJoiner&) = delete;
  StreamJoiner& operator=(const StreamJoiner&) = delete;
  virtual ~StreamJoiner() = default;

  virtual std::string Begin() { return {}; }
  // Adds the chunk to the checksums and the index. Sets its final nbytes.
  virtual void Append(EncodedChunk* chunk) { (void)chunk; }
  // Called after Append and before the chunk is written. Does the slow part of joining.
  virtual void Settle(EncodedChunk* chunk) const { (void)chunk; }
  virtual std::string End() { return {}; }
};

class Codec {
 public:
  Codec() = default;
  Codec(const Codec&) = delete;
  Codec& operator=(const Codec&) = delete;
  virtual ~Codec() = default;

  // Raw bytes per chunk. The last chunk of a stream may be shorter.
  virtual std::size_t chunk_nbytes() const = 0;
  // True if the output is exactly as long as the input. The file's space is then reserved in
  // advance.
  virtual bool stores() const { return false; }
  // A chunk of the type that the encoders and joiners of this codec expect.
  virtual std::unique_ptr<EncodedChunk> NewChunk() const {
    return std::make_unique<EncodedChunk>();
  }
  virtual std::unique_ptr<ChunkEncoder> NewEncoder(int level) const = 0;
  virtual std::unique_ptr<StreamJoiner> NewJoiner() const = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_CODEC_H_
