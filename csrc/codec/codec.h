// What a compression format offers to those who write. decoder.h is what it offers to those
// who read, and formats.h lists all formats.
//
// A codec encodes each chunk on its own (ChunkEncoder, in parallel) and joins the results to
// one member or stream (StreamJoiner, in order). The code of a chunk never refers to another
// chunk.
#ifndef PYCKPT_CODEC_CODEC_H_
#define PYCKPT_CODEC_CODEC_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "codec/chunk.h"

namespace pyckpt {

// The code of one chunk. A codec whose joiner needs to know more of a chunk has a type of
// its own that derives from this one. Reused from chunk to chunk.
struct EncodedChunk {
  EncodedChunk() = default;
  EncodedChunk(const EncodedChunk&) = delete;
  EncodedChunk& operator=(const EncodedChunk&) = delete;
  virtual ~EncodedChunk() = default;

  // Makes the first used_nbytes of buffer the code.
  void UseBuffer(std::size_t used_nbytes) {
    spans.assign(1, {buffer.data(), used_nbytes});
    nbytes = used_nbytes;
  }

  Buffer buffer;             // owned by the chunk; spans may point into it
  std::vector<Span> spans;   // the code, in order; valid until the next Encode()
  std::uint64_t nbytes = 0;  // in all spans
  std::uint64_t raw_nbytes = 0;
};

// One per worker, used by that worker alone; keeps its state between chunks.
class ChunkEncoder {
 public:
  ChunkEncoder() = default;
  ChunkEncoder(const ChunkEncoder&) = delete;
  ChunkEncoder& operator=(const ChunkEncoder&) = delete;
  virtual ~ChunkEncoder() = default;

  // Sets all of out. out is what NewChunk() of the same codec made. The chunk and out stay
  // unchanged until out is written.
  virtual void Encode(const Chunk& chunk, EncodedChunk* out) = 0;
};

// One per stream. Begin, Append and End are called one at a time and in stream
// order, and cost little; Settle may run in parallel.
class StreamJoiner {
 public:
  StreamJoiner() = default;
  StreamJoiner(const StreamJoiner&) = delete;
  StreamJoiner& operator=(const StreamJoiner&) = delete;
  virtual ~StreamJoiner() = default;

  virtual std::string Begin() { return {}; }
  // Takes the chunk into checksums and index. Sets its final nbytes.
  virtual void Append(EncodedChunk* chunk) { (void)chunk; }
  // After Append and before the write: the part of joining that costs time.
  virtual void Settle(EncodedChunk* chunk) const { (void)chunk; }
  virtual std::string End() { return {}; }
};

class Codec {
 public:
  Codec() = default;
  Codec(const Codec&) = delete;
  Codec& operator=(const Codec&) = delete;
  virtual ~Codec() = default;

  // Raw bytes a chunk; the last one of a stream may be shorter.
  virtual std::size_t chunk_nbytes() const = 0;
  // True when the output is as long as the input, whose size is then reserved.
  virtual bool stores() const { return false; }
  // What the encoders and joiners of this codec work on.
  virtual std::unique_ptr<EncodedChunk> NewChunk() const {
    return std::make_unique<EncodedChunk>();
  }
  virtual std::unique_ptr<ChunkEncoder> NewEncoder(int level) const = 0;
  virtual std::unique_ptr<StreamJoiner> NewJoiner() const = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_CODEC_H_
