// Finds the blocks of a file by the indexes of its streams.
#ifndef PYCKPT_CODEC_XZ_STREAM_INDEX_H_
#define PYCKPT_CODEC_XZ_STREAM_INDEX_H_

#include <lzma.h>

#include <cstdint>
#include <vector>

#include "base/bytes.h"
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
};

// Reads the indexes of all streams. Throws Corrupt if they are damaged or do not fit the file.
Layout ReadStreams(Span file);

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_STREAM_INDEX_H_
