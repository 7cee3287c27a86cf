// What a deflate block says of itself before its symbols (RFC 1951, sections 3.2.3 to 3.2.7).
#ifndef PYCKPT_CODEC_GZIP_BLOCK_HEADER_H_
#define PYCKPT_CODEC_GZIP_BLOCK_HEADER_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/gzip/bit_reader.h"

namespace pyckpt::gzip {

struct BlockHeader {
  // As the format numbers them.
  enum class Kind : std::uint8_t { kStored = 0, kFixed = 1, kDynamic = 2 };

  bool is_last = false;
  Kind kind = Kind::kStored;
  std::size_t stored_nbytes = 0;  // which follow the header

  // Of the other kinds: the lengths of the codes of literals, end of block and match lengths, and
  // then of distances, in bits.
  std::size_t literals = 0;
  std::size_t distances = 0;
  std::array<std::uint8_t, 288 + 32> lengths{};

  const std::uint8_t* distance_lengths() const { return lengths.data() + literals; }
};

// Reads the header at which reader stands. Returns false if no encoder writes it. reader may have
// overrun its end after either.
bool ReadBlockHeader(BitReader* reader, BlockHeader* header);

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_BLOCK_HEADER_H_
