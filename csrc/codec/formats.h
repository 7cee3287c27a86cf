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
  const char* name;                   // of a tar in this format, for users and messages: "tar.gz"
  const char* compression;            // of any file in this format: "gzip"; "" for none
  std::vector<const char*> suffixes;  // the usual one first; empty if the format is only read
  std::optional<Levels> levels;       // none if the format has no levels
  const Codec* codec;                 // null if the format is only read
  const Decompressor* decompressor;   // null if the format is not compressed
};

// All formats. Those with magic bytes come before those without, so the first one that recognizes a
// file is the right one.
const std::vector<Format>& Formats();

// The formats that can be written, in the order in which to show them to users.
std::vector<const Format*> WritableFormats();

// The format that recognizes the file by its first bytes; null if none does.
const Format* FindFormat(Span file);

// The codec for files with none of these suffixes. They are torch's zip files, and the codec stores
// their bytes unchanged.
const Codec& StoreCodec();

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_FORMATS_H_
