#include "codec/chunk.h"

#include "base/crc32.h"

namespace pyckpt {

std::uint32_t Chunk::Crc() const {
  // Combining two checksums takes as long as computing one over this many bytes.
  constexpr std::size_t kCombineNbytes = std::size_t{32} << 10;
  std::uint32_t crc = 0;
  for (const Piece& piece : pieces) {
    crc = piece.crc && piece.span.nbytes >= kCombineNbytes
              ? Crc32Combine(crc, *piece.crc, piece.span.nbytes)
              : Crc32(piece.span, crc);
  }
  return crc;
}

}  // namespace pyckpt
