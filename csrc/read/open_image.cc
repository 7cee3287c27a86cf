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

std::shared_ptr<StreamImage> OpenImage(const std::shared_ptr<const OpenFile>& file,
                                       const ReadOptions& options) {
  auto map = std::make_unique<FileMap>(*file, FileMap::Writes::kForbidden);
  map->file_bytes().Need(0, kHeadNbytes);
  const Format* format = FindFormat(map->bytes());
  if (format == nullptr) {
    return options.mapped ? OpenMappedImage(*file, options) : OpenReadImage(file, options);
  }
  std::unique_ptr<BlockStream> stream = format->decompressor->OpenBlocks(map->file_bytes());
  if (!stream || stream->blocks().empty()) {
    return NewSequentialImage(std::move(map), *format, options);
  }
  if (stream->blocks().front().raw_offset == kUnknownNbytes) {
    return NewUnplacedImage(std::move(map), std::move(stream), *format, options);
  }
  return NewBlockImage(std::move(map), std::move(stream), *format, options);
}

}  // namespace pyckpt
