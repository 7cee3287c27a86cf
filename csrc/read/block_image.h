// Files whose blocks tell where their bytes belong: each is decoded on its own, in parallel.
#ifndef PYCKPT_READ_BLOCK_IMAGE_H_
#define PYCKPT_READ_BLOCK_IMAGE_H_

#include <memory>

#include "base/file_map.h"
#include "codec/decoder.h"
#include "codec/formats.h"
#include "read/stream_image.h"

namespace pyckpt {

// stream is file's, and tells the places of all its blocks. Throws Corrupt if they do not
// follow one another, or claim more bytes than there is room for.
std::shared_ptr<StreamImage> NewBlockImage(std::unique_ptr<FileMap> file,
                                           std::unique_ptr<BlockStream> stream,
                                           const Format& format, const ReadOptions& options);

}  // namespace pyckpt

#endif  // PYCKPT_READ_BLOCK_IMAGE_H_
