// Where the chunks of a deflated record begin, for readers that decode them in parallel. It is an
// extra field of the record in the central directory, which other readers pass over.
#ifndef PYCKPT_CONTAINER_ZIP_CHUNK_INDEX_H_
#define PYCKPT_CONTAINER_ZIP_CHUNK_INDEX_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

// "PY". APPNOTE.TXT has no such id.
inline constexpr std::uint16_t kZipChunkIndexId = 0x5950;

// Code that refers to nothing outside of it.
struct DeflatedChunk {
  std::uint64_t raw_nbytes = 0;
  std::uint64_t code_nbytes = 0;
};

// The extra field: its id, its size and the index. Empty for fewer than two chunks. All chunks but
// the first and the last have the same size before compression, and these are not larger. If there
// are too many for a field, one entry stands for several chunks. docs/format.md has the layout.
std::string EncodeZipChunkIndex(const std::vector<DeflatedChunk>& chunks);

// The chunks of a record of these sizes, from the data of the extra field. Empty if this is not the
// index of such a record.
std::vector<DeflatedChunk> DecodeZipChunkIndex(Span data, std::uint64_t raw_nbytes,
                                               std::uint64_t code_nbytes);

}  // namespace pyckpt

#endif  // PYCKPT_CONTAINER_ZIP_CHUNK_INDEX_H_
