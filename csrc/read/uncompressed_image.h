// Files that are not compressed: their own bytes are the stream.
#ifndef PYCKPT_READ_UNCOMPRESSED_IMAGE_H_
#define PYCKPT_READ_UNCOMPRESSED_IMAGE_H_

#include <memory>
#include <string>

#include "read/stream_image.h"

namespace pyckpt {

// The bytes stay in the file, which is mapped. What is written to them goes to a copy.
std::shared_ptr<StreamImage> OpenMappedImage(const std::string& path, const ReadOptions& options);

// The bytes are read unit by unit.
std::shared_ptr<StreamImage> OpenReadImage(const std::string& path, const ReadOptions& options);

}  // namespace pyckpt

#endif  // PYCKPT_READ_UNCOMPRESSED_IMAGE_H_
