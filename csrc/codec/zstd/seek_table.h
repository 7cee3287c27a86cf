// The seek table of zstd's seekable format (contrib/seekable_format in zstd's sources): a frame at
// the file's end that decoders skip. It says the sizes of all frames before it, so readers decode
// in parallel, or only what they need. Other programs know it too.
#ifndef PYCKPT_CODEC_ZSTD_SEEK_TABLE_H_
#define PYCKPT_CODEC_ZSTD_SEEK_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/supply.h"

namespace pyckpt::zstd {

struct FrameSizes {
  std::uint32_t code_nbytes;
  std::uint32_t raw_nbytes;
};

// Empty if the format allows no table for so many frames.
std::string EncodeSeekTable(const std::vector<FrameSizes>& frames);

// The table at the file's end. None if there is none, or if the sizes of the frames and of the
// table do not add up to the file's. Takes as much memory as the table.
std::optional<std::vector<FrameSizes>> DecodeSeekTable(const FileBytes& stored);

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_SEEK_TABLE_H_
