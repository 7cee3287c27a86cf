// What an encoder encodes at once: a chunk of the stream, as pieces of memory.
#ifndef PYCKPT_CODEC_CHUNK_H_
#define PYCKPT_CODEC_CHUNK_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

// Bytes of a chunk that lie in one place.
struct Piece {
  Span span;
  std::size_t segment = 0;           // of the stream plan; encoders do not read it
  std::optional<std::uint32_t> crc;  // of span, where a checksum of it is wanted
};

// One chunk of the stream while it is in work. Reused from chunk to chunk.
struct Chunk {
  std::uint64_t offset = 0;
  std::size_t nbytes = 0;
  std::uint32_t element_nbytes = 1;  // of the tensor that fills most of it
  std::vector<Piece> pieces;         // valid until the chunk is read again
  Buffer scratch;                    // what sources were copied to

  // Of all its bytes, once it is joined; what pieces know of theirs is used.
  std::uint32_t Crc() const;
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_CHUNK_H_
