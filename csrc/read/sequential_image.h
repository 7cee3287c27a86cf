// Files that one thread decodes from start to end.
#ifndef PYCKPT_READ_SEQUENTIAL_IMAGE_H_
#define PYCKPT_READ_SEQUENTIAL_IMAGE_H_

#include <memory>

#include "base/file_map.h"
#include "codec/formats.h"
#include "read/stream_image.h"

namespace pyckpt {

// format is the format of file.
std::shared_ptr<StreamImage> NewSequentialImage(std::unique_ptr<FileMap> file, const Format& format,
                                                const ReadOptions& options);

}  // namespace pyckpt

#endif  // PYCKPT_READ_SEQUENTIAL_IMAGE_H_
