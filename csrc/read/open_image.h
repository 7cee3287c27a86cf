// Which image serves a file.
#ifndef PYCKPT_READ_OPEN_IMAGE_H_
#define PYCKPT_READ_OPEN_IMAGE_H_

#include <memory>
#include <string>

#include "read/stream_image.h"

namespace pyckpt {

// Opens any file. Throws Error::System for files that cannot be read, Error::Corrupt for broken
// ones.
std::shared_ptr<StreamImage> OpenImage(const std::string& path, const ReadOptions& options);

}  // namespace pyckpt

#endif  // PYCKPT_READ_OPEN_IMAGE_H_
