#include <algorithm>
#include <array>

#include "codec/bzip2/decoder.h"
#include "codec/decoder.h"
#include "codec/gzip/decoder.h"
#include "codec/xz/decoder.h"

namespace pyckpt {

const Decompressor* FindDecompressor(Span file) {
  static const gzip::GzipDecompressor kGzip;
  static const bzip2::Bzip2Decompressor kBzip2;
  static const xz::XzDecompressor kXz;
  static const xz::LzmaDecompressor kLzma;  // last, since it has no magic
  static const std::array<const Decompressor*, 4> kAll = {&kGzip, &kBzip2, &kXz, &kLzma};
  const auto* found = std::find_if(kAll.begin(), kAll.end(), [file](const Decompressor* format) {
    return format->Recognizes(file);
  });
  return found == kAll.end() ? nullptr : *found;
}

}  // namespace pyckpt
