// Finds the blocks of a file by the indexes of its streams.
#ifndef PYCKPT_CODEC_XZ_STREAM_INDEX_H_
#define PYCKPT_CODEC_XZ_STREAM_INDEX_H_

#include <lzma.h>

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/supply.h"
#include "codec/decoder.h"

namespace pyckpt::xz {

// Which kind of check the blocks of one stream have.
struct StreamCheck {
  std::uint64_t begin = 0;  // of the stream, in the file
  lzma_check check = LZMA_CHECK_NONE;
};

// One for each stream of a file, in the file's order.
using StreamChecks = std::vector<StreamCheck>;

// What the indexes of all streams of a file say.
struct Layout {
  std::vector<CodeBlock> blocks;
  StreamChecks checks;
  std::uint64_t used_nbytes = 0;  // of the file, by streams and the padding between and after them
};

// Whether a stream seems to begin at byte at of the file.
bool HasMagic(Span file, std::uint64_t at);

// Reads the indexes of all streams. Something that is no stream may follow them. Throws Corrupt if
// the indexes are damaged or do not fit the file.
Layout ReadStreams(const FileBytes& stored);

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_STREAM_INDEX_H_
