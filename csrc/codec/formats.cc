#include "codec/bzip2/encoder.h"
#include "codec/codec.h"
#include "codec/gzip/encoder.h"
#include "codec/store/encoder.h"
#include "codec/xz/encoder.h"

namespace pyckpt {

const std::vector<Format>& Formats() {
  static const store::StoreCodec kStore;
  static const deflate::GzipCodec kGzip;
  static const bzip2::Bzip2Codec kBzip2;
  static const xz::XzCodec kXz;
  static const std::vector<Format> kFormats = {
      {"tar", {".tar"}, false, {0, 0, 0}, &kStore},
      {"tar.gz", {".tar.gz", ".tgz"}, true, {0, 9, 6}, &kGzip},
      {"tar.bz2", {".tar.bz2", ".tar.bzip", ".tar.bzip2", ".tbz2"}, true, {1, 9, 9}, &kBzip2},
      // .tar.lzma too is an xz stream: that is what Composer writes and reads.
      {"tar.xz", {".tar.lzma", ".tar.xz", ".txz"}, true, {0, 9, 6}, &kXz},
  };
  return kFormats;
}

const Codec& StoreCodec() { return *Formats().front().codec; }

void ContiguousEncoder::Encode(const Chunk& chunk, EncodedChunk* out) {
  constexpr auto kNone = static_cast<std::size_t>(-1);
  const Span raw = gatherer_.Gather(chunk, kNone).front().bytes;
  out->raw_nbytes = raw.nbytes;
  EncodeBytes(raw, chunk, out);
}

}  // namespace pyckpt
