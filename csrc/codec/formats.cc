#include "codec/formats.h"

#include <algorithm>

#include "codec/bzip2/decoder.h"
#include "codec/bzip2/encoder.h"
#include "codec/gzip/decoder.h"
#include "codec/gzip/encoder.h"
#include "codec/store/encoder.h"
#include "codec/xz/decoder.h"
#include "codec/xz/encoder.h"
#include "codec/xz/lzma_encoder.h"
#include "codec/zstd/decoder.h"
#include "codec/zstd/encoder.h"

namespace pyckpt {
namespace {

template <typename Condition>
std::vector<const Format*> FormatsWhere(Condition holds) {
  std::vector<const Format*> found;
  for (const Format& format : Formats()) {
    if (holds(format)) found.push_back(&format);
  }
  return found;
}

}  // namespace

const std::vector<Format>& Formats() {
  static const store::StoreCodec kStore;
  static const gzip::GzipCodec kGzip(gzip::IndexPlace::kBehindTar);
  static const gzip::GzipCodec kGzipFile(gzip::IndexPlace::kOwnMember);
  static const gzip::GzipDecompressor kFromGzip;
  static const bzip2::Bzip2Codec kBzip2;
  static const bzip2::Bzip2Decompressor kFromBzip2;
  static const xz::XzCodec kXz;
  static const xz::XzDecompressor kFromXz;
  static const xz::LzmaCodec kLzma;
  static const xz::LzmaDecompressor kFromLzma;
  static const zstd::ZstdCodec kZstd;
  static const zstd::ZstdDecompressor kFromZstd;
  static const std::vector<Format> kFormats = {
      {"tar", "", {".tar"}, {}, std::nullopt, &kStore, nullptr, nullptr},
      {"tar.gz",
       "gzip",
       {".tar.gz", ".tgz"},
       {".gz"},
       Levels{0, 9, 6},
       &kGzip,
       &kGzipFile,
       &kFromGzip},
      {"tar.bz2",
       "bzip2",
       {".tar.bz2", ".tar.bzip", ".tar.bzip2", ".tbz2"},
       {".bz2"},
       Levels{1, 9, 9},
       &kBzip2,
       &kBzip2,
       &kFromBzip2},
      // Files named .tar.lzma are xz streams too, because that is what Composer writes and reads.
      {"tar.xz",
       "xz",
       {".tar.lzma", ".tar.xz", ".txz"},
       {".xz"},
       Levels{0, 9, 6},
       &kXz,
       &kXz,
       &kFromXz},
      {"tar.zst",
       "zstd",
       {".tar.zst", ".tzst"},
       {".zst"},
       Levels{1, 19, 3},
       &kZstd,
       &kZstd,
       &kFromZstd},
      // The predecessor of xz, for readers that run the command lzma. It has no magic bytes, so it
      // comes last.
      {"lzma", "lzma", {}, {".lzma"}, Levels{0, 9, 6}, nullptr, &kLzma, &kFromLzma},
  };
  return kFormats;
}

std::vector<const Format*> TarFormats() {
  return FormatsWhere([](const Format& format) { return format.codec != nullptr; });
}

std::vector<const Format*> FileFormats() {
  return FormatsWhere([](const Format& format) { return format.file_codec != nullptr; });
}

const Format* FindFormat(Span file) {
  const auto found = std::find_if(Formats().begin(), Formats().end(), [file](const Format& format) {
    return format.decompressor != nullptr && format.decompressor->Recognizes(file);
  });
  return found == Formats().end() ? nullptr : &*found;
}

const Codec& StoreCodec() { return *Formats().front().codec; }

}  // namespace pyckpt
