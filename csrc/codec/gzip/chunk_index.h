// Where chunks begin in a gzip archive, for readers that decode in parallel or
// want one tensor only. It stands behind the tar, where tar readers look no
// more, inside the one gzip member that there is.
#ifndef PYCKPT_CODEC_GZIP_CHUNK_INDEX_H_
#define PYCKPT_CODEC_GZIP_CHUNK_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::gzip {

// What one stored block of deflate holds.
inline constexpr std::size_t kMostIndexNbytes = 65'535;

// The index of chunks of raw_nbytes (the last may be shorter) whose code takes
// code_nbytes each, the first from file offset first_offset on. A multiple of
// 512 bytes, as all of a tar. docs/format.md has the layout. Where chunks are so
// many that they would not fit, an entry stands for several.
std::string EncodeChunkIndex(std::uint64_t first_offset, std::uint64_t raw_nbytes,
                             const std::vector<std::uint64_t>& code_nbytes);

struct ChunkIndex {
  std::uint64_t first_offset = 0;          // in the file, of the first chunk's code
  std::uint64_t raw_nbytes = 0;            // of a chunk; the last may be shorter
  std::vector<std::uint64_t> code_nbytes;  // of each chunk; their sum does not overflow
  std::uint64_t nbytes = 0;                // of the index itself
};

// The index that raw bytes end with; none where there is none, or one that
// EncodeChunkIndex() does not write. Reads nothing else of them.
std::optional<ChunkIndex> DecodeChunkIndex(Span raw);

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_CHUNK_INDEX_H_
