// Deflate blocks that hold bytes as they are (RFC 1951, section 3.2.4).
#ifndef PYCKPT_CODEC_GZIP_STORED_BLOCKS_H_
#define PYCKPT_CODEC_GZIP_STORED_BLOCKS_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "codec/gzip/bit_writer.h"

namespace pyckpt::gzip {

// An empty stored block: what follows starts on a byte. Returns the end.
std::uint8_t* WriteEmptyBlock(BitWriter* writer);

// Stored blocks, the first of which starts in the writer's last byte: 5 bytes
// for each 65,535, or what is left of them in each run, and one.
std::size_t StoredBlocksBound(std::size_t raw_nbytes, std::size_t runs);
std::uint8_t* WriteStoredBlocks(Span raw, BitWriter* writer);

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_STORED_BLOCKS_H_
