// Files whose blocks are decoded in parallel, although their sizes are not known before (bzip2).
#ifndef PYCKPT_READ_UNPLACED_IMAGE_H_
#define PYCKPT_READ_UNPLACED_IMAGE_H_

#include <memory>

#include "base/file_map.h"
#include "codec/decoder.h"
#include "codec/formats.h"
#include "read/stream_image.h"

namespace pyckpt {

// stream was opened on file, and has at least one block.
std::shared_ptr<StreamImage> NewUnplacedImage(std::unique_ptr<FileMap> file,
                                              std::unique_ptr<BlockStream> stream,
                                              const Format& format, const ReadOptions& options);

}  // namespace pyckpt

#endif  // PYCKPT_READ_UNPLACED_IMAGE_H_
