// A chunk: the part of the stream that an encoder encodes in one call, as pieces of memory.
#ifndef PYCKPT_CODEC_CHUNK_H_
#define PYCKPT_CODEC_CHUNK_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

// Bytes of a chunk that are contiguous in memory.
struct Piece {
  Span span;
  std::size_t segment = 0;           // index in the stream plan; encoders do not read it
  std::optional<std::uint32_t> crc;  // of span, if a checksum over it is needed
};

// One chunk of the stream while it is read and encoded. The object is reused for later chunks.
struct Chunk {
  std::uint64_t offset = 0;
  std::size_t nbytes = 0;
  std::uint32_t element_nbytes = 1;  // of the tensor that fills most of it
  bool deferred = false;             // some bytes are in place only once the chunk is joined
  std::vector<Piece> pieces;         // valid until the chunk is read again
  Buffer scratch;                    // the bytes that were read from sources

  // The CRC-32 of all its bytes. Uses the checksums that pieces already have. If the chunk has
  // deferred bytes, call it after the chunk is joined to the stream.
  std::uint32_t Crc() const;
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_CHUNK_H_
