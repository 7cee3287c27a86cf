// The table of formats: one row per format, for writing and reading. Code outside a format's folder
// knows the format only by its row.
#ifndef PYCKPT_CODEC_FORMATS_H_
#define PYCKPT_CODEC_FORMATS_H_

#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "codec/codec.h"
#include "codec/decoder.h"

namespace pyckpt {

struct Levels {
  int lowest;
  int highest;
  int standard;
};

struct Format {
  const char* name;                       // of a tar in this format, for users: "tar.gz"
  const char* compression;                // of any file in this format: "gzip"; "" for none
  std::vector<const char*> suffixes;      // of tars, the usual one first; empty if none is written
  std::vector<const char*> file_endings;  // of other files, behind their own suffix: ".gz"
  std::optional<Levels> levels;           // none if the format has no levels
  const Codec* codec;                     // of tars; null if none is written
  const Codec* file_codec;                // of other files; null if none is written
  const Decompressor* decompressor;       // null if the format is not compressed
};

// All formats. Those with magic bytes come before those without, so the first one that recognizes a
// file is the right one.
const std::vector<Format>& Formats();

// The formats in which a tar is written, and those in which any other file is, in the order in
// which to show them to users.
std::vector<const Format*> TarFormats();
std::vector<const Format*> FileFormats();

// The format that recognizes the file by its first bytes; null if none does.
const Format* FindFormat(Span file);

// The codec for files with none of these suffixes. They are torch's zip files, and the codec stores
// their bytes unchanged.
const Codec& StoreCodec();

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_FORMATS_H_
