// Files that say the place and size of every decoded block. Blocks are decoded on their own, in
// parallel.
#ifndef PYCKPT_READ_BLOCK_IMAGE_H_
#define PYCKPT_READ_BLOCK_IMAGE_H_

#include <memory>

#include "base/file_map.h"
#include "codec/decoder.h"
#include "codec/formats.h"
#include "read/stream_image.h"

namespace pyckpt {

// stream was opened on file, and its blocks all have a place and a size. Throws Corrupt if the
// blocks do not follow one another, or if they claim more bytes than there is room for.
std::shared_ptr<StreamImage> NewBlockImage(std::unique_ptr<FileMap> file,
                                           std::unique_ptr<BlockStream> stream,
                                           const Format& format, const ReadOptions& options);

}  // namespace pyckpt

#endif  // PYCKPT_READ_BLOCK_IMAGE_H_
