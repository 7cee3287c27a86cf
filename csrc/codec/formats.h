// The one table of formats: a row each, for both directions. All that is known of a format
// outside its own folder comes from its row.
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
  const char* name;         // of a tar in this format, as users and messages call it: "tar.gz"
  const char* compression;  // of any file in this format: "gzip"; "" for none
  std::vector<const char*> suffixes;  // the first is the usual one; none if it is only read
  std::optional<Levels> levels;       // none if there is nothing to choose
  const Codec* codec;                 // null if the format is only read
  const Decompressor* decompressor;   // null if there is nothing to decompress
};

// Every format. Those with magic bytes stand before those without, so that the first one that
// recognizes a file is right.
const std::vector<Format>& Formats();

// The rows that can be written, in the order in which users should read them.
std::vector<const Format*> WritableFormats();

// The row that recognizes the file by its first bytes; null if none does.
const Format* FindFormat(Span file);

// The codec of files without any of the suffixes, which are torch's zip file: it stores.
const Codec& StoreCodec();

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_FORMATS_H_
