// Deflate blocks that hold bytes as they are (RFC 1951, section 3.2.4).
#ifndef PYCKPT_CODEC_GZIP_STORED_BLOCKS_H_
#define PYCKPT_CODEC_GZIP_STORED_BLOCKS_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "codec/bit_writer.h"

namespace pyckpt::gzip {

// Writes an empty stored block, so that what follows starts on a byte boundary. Returns the end of
// the output.
std::uint8_t* WriteEmptyBlock(BitWriter* writer);

// How many bytes the stored blocks for this many runs take at most: the raw bytes, 5 for each full
// block of 65,535 bytes, 5 for the rest of each run, and 1 if the first block starts within a byte.
std::size_t StoredBlocksBound(std::size_t raw_nbytes, std::size_t runs);
// Writes raw as stored blocks, none of which is the last of the stream. Returns the end.
std::uint8_t* WriteStoredBlocks(Span raw, BitWriter* writer);

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_STORED_BLOCKS_H_
