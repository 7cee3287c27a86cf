// An index of where chunks begin in a gzip archive, for readers that decode in parallel or need
// only one tensor. It follows the tar's end, where tar readers no longer read, inside the same gzip
// member.
#ifndef PYCKPT_CODEC_GZIP_CHUNK_INDEX_H_
#define PYCKPT_CODEC_GZIP_CHUNK_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::gzip {

// The index must fit into one stored block of deflate.
inline constexpr std::size_t kMostIndexNbytes = 65'535;

// Encodes an index. Each chunk has raw_nbytes bytes (the last may have fewer). code_nbytes has the
// size of each chunk's code. The first chunk's code begins at file offset first_offset. The result
// is a multiple of 512 bytes long, like all parts of a tar. docs/format.md has the layout. If there
// are too many chunks for kMostIndexNbytes, one entry stands for several chunks.
std::string EncodeChunkIndex(std::uint64_t first_offset, std::uint64_t raw_nbytes,
                             const std::vector<std::uint64_t>& code_nbytes);

struct ChunkIndex {
  std::uint64_t first_offset = 0;          // of the first chunk's code in the file
  std::uint64_t raw_nbytes = 0;            // of each chunk; the last may have fewer
  std::vector<std::uint64_t> code_nbytes;  // of each chunk; their sum does not overflow
  std::uint64_t nbytes = 0;                // of the index itself
};

// Decodes the index at the end of raw. None if there is no index, or if it is not one that
// EncodeChunkIndex() writes. Reads no bytes before the index.
std::optional<ChunkIndex> DecodeChunkIndex(Span raw);

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_CHUNK_INDEX_H_
