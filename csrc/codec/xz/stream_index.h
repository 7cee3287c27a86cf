// Where the blocks of a file lie, as the indexes of its streams say.
#ifndef PYCKPT_CODEC_XZ_STREAM_INDEX_H_
#define PYCKPT_CODEC_XZ_STREAM_INDEX_H_

#include <lzma.h>

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/decoder.h"

namespace pyckpt::xz {

// Which check follows the code of each block of one stream.
struct StreamCheck {
  std::uint64_t begin = 0;  // of the stream, in the file
  lzma_check check = LZMA_CHECK_NONE;
};

// Of all streams of a file, in the file's order.
using StreamChecks = std::vector<StreamCheck>;

// What the indexes of a file's streams say.
struct Layout {
  std::vector<CodeBlock> blocks;
  StreamChecks checks;
};

// Reads the indexes of all streams. Throws Corrupt where they are not those of this file.
Layout ReadStreams(Span file);

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_STREAM_INDEX_H_
