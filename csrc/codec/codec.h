// What a compression format has to offer to the pipeline, and the one table of
// formats.
//
// A codec turns each chunk into bytes on its own (ChunkEncoder, in parallel)
// and strings the results into one member or stream (StreamJoiner, in order).
// Nothing in a chunk's code refers to another chunk.
#ifndef PYCKPT_CODEC_CODEC_H_
#define PYCKPT_CODEC_CODEC_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "codec/runs.h"
#include "write/stream_plan.h"

namespace pyckpt {

// What became of one chunk. Reused from chunk to chunk.
struct EncodedChunk {
  Buffer buffer;             // owned by the chunk; spans may point into it
  std::vector<Span> spans;   // the code, in order; valid until the next Encode()
  std::uint64_t nbytes = 0;  // in all spans

  std::uint64_t raw_nbytes = 0;
  std::uint32_t check = 0;     // the codec's own: a CRC of the raw bytes
  std::uint64_t nbits = 0;     // bzip2: the code's length before it is shifted
  std::uint32_t blocks = 0;    // bzip2: how many blocks the code holds
  std::uint64_t unpadded = 0;  // xz: the block's size for the index
  std::uint32_t shift = 0;     // bzip2: bits of the joint byte that are taken
  std::uint8_t carry = 0;      // bzip2: those bits

  // Makes the first used_nbytes of buffer the code.
  void UseBuffer(std::size_t used_nbytes) {
    spans.assign(1, {buffer.data(), used_nbytes});
    nbytes = used_nbytes;
  }
};

// One per worker, used by that worker alone; keeps its state between chunks.
class ChunkEncoder {
 public:
  ChunkEncoder() = default;
  ChunkEncoder(const ChunkEncoder&) = delete;
  ChunkEncoder& operator=(const ChunkEncoder&) = delete;
  virtual ~ChunkEncoder() = default;

  // Sets out's spans, nbytes and the fields that its joiner reads. The chunk
  // and out stay unchanged until out is written.
  virtual void Encode(const Chunk& chunk, EncodedChunk* out) = 0;
};

// For codecs whose library wants one run of bytes: gathers the pieces first.
class ContiguousEncoder : public ChunkEncoder {
 public:
  void Encode(const Chunk& chunk, EncodedChunk* out) final;

 protected:
  // raw is all of chunk's bytes.
  virtual void EncodeBytes(Span raw, const Chunk& chunk, EncodedChunk* out) = 0;

 private:
  Gatherer gatherer_;
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

struct Levels {
  int lowest;
  int highest;
  int standard;
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
  virtual std::unique_ptr<ChunkEncoder> NewEncoder(int level) const = 0;
  virtual std::unique_ptr<StreamJoiner> NewJoiner() const = 0;
};

// A row of the table: how a file name asks for a format.
struct Format {
  const char* name;  // "tar.gz": also what messages call it
  std::vector<const char*> suffixes;
  bool has_levels;
  Levels levels;
  const Codec* codec;
};

// Every tar format there is, in the order in which users should read them.
const std::vector<Format>& Formats();

// What a file without any of the suffixes gets: torch's zip file, stored.
const Codec& StoreCodec();

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_CODEC_H_
