// Chooses the kind of image for a file.
#ifndef PYCKPT_READ_OPEN_IMAGE_H_
#define PYCKPT_READ_OPEN_IMAGE_H_

#include <memory>

#include "base/open_file.h"
#include "read/stream_image.h"

namespace pyckpt {

// For any file. Throws Error::System if it cannot be read, Error::Corrupt if it is broken.
std::shared_ptr<StreamImage> OpenImage(const std::shared_ptr<const OpenFile>& file,
                                       const ReadOptions& options);

}  // namespace pyckpt

#endif  // PYCKPT_READ_OPEN_IMAGE_H_
