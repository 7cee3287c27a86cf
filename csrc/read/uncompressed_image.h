// Files that are not compressed: their own bytes are the stream.
#ifndef PYCKPT_READ_UNCOMPRESSED_IMAGE_H_
#define PYCKPT_READ_UNCOMPRESSED_IMAGE_H_

#include <memory>

#include "base/open_file.h"
#include "read/stream_image.h"

namespace pyckpt {

// The file is mapped, and its bytes stay there. Writes to the memory go to a copy.
std::shared_ptr<StreamImage> OpenMappedImage(const OpenFile& file, const ReadOptions& options);

// The bytes are read into memory, one unit at a time per thread.
std::shared_ptr<StreamImage> OpenReadImage(const std::shared_ptr<const OpenFile>& file,
                                           const ReadOptions& options);

}  // namespace pyckpt

#endif  // PYCKPT_READ_UNCOMPRESSED_IMAGE_H_
