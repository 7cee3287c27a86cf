// Chooses the kind of image for a file.
#ifndef PYCKPT_READ_OPEN_IMAGE_H_
#define PYCKPT_READ_OPEN_IMAGE_H_

#include <memory>
#include <string>

#include "read/stream_image.h"

namespace pyckpt {

// Opens any file. Throws Error::System if it cannot be read, Error::Corrupt if it is broken.
std::shared_ptr<StreamImage> OpenImage(const std::string& path, const ReadOptions& options);

}  // namespace pyckpt

#endif  // PYCKPT_READ_OPEN_IMAGE_H_
