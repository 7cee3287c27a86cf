#include "read/open_image.h"

#include <utility>

#include "base/file_map.h"
#include "codec/decoder.h"
#include "codec/formats.h"
#include "read/block_image.h"
#include "read/sequential_image.h"
#include "read/uncompressed_image.h"
#include "read/unplaced_image.h"

namespace pyckpt {

std::shared_ptr<StreamImage> OpenImage(const std::string& path, const ReadOptions& options) {
  auto file = std::make_unique<FileMap>(path, FileMap::Writes::kForbidden);
  const Format* format = FindFormat(file->bytes());
  if (format == nullptr) {
    return options.mapped ? OpenMappedImage(path, options) : OpenReadImage(path, options);
  }
  std::unique_ptr<BlockStream> stream = format->decompressor->OpenBlocks(file->bytes());
  if (!stream || stream->blocks().empty()) {
    return NewSequentialImage(std::move(file), *format, options);
  }
  if (stream->blocks().front().raw_offset == kUnknownNbytes) {
    return NewUnplacedImage(std::move(file), std::move(stream), *format, options);
  }
  return NewBlockImage(std::move(file), std::move(stream), *format, options);
}

}  // namespace pyckpt
