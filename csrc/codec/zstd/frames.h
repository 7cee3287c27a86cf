// Where a file's frames are.
#ifndef PYCKPT_CODEC_ZSTD_FRAMES_H_
#define PYCKPT_CODEC_ZSTD_FRAMES_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/supply.h"
#include "codec/decoder.h"

namespace pyckpt::zstd {

// Where the first frame begins that is not skipped, or one within which the file ends. None of the
// file's bytes from at on are zstd's if this is not a frame's beginning.
std::uint64_t SkipFrames(Span file, std::uint64_t at);

// Whether a frame begins there, skipped or not.
bool FrameBegins(Span file, std::uint64_t at);

// Whether a frame that is not skipped begins there.
bool HasMagic(Span file, std::uint64_t at);

struct Frames {
  std::vector<CodeBlock> blocks;  // one for each frame, skipped ones too
  std::uint64_t used_nbytes = 0;  // of the file; something else may follow
};

// All frames, with their sizes. No blocks if there are fewer than two frames, or if one of them
// does not say its size, has more than kMostBlockNbytes or is damaged. Reads the seek table if
// there is one; else each frame's block headers, until one of these reasons is found.
Frames FindFrames(const FileBytes& file);

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_FRAMES_H_
