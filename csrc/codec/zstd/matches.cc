#include "codec/zstd/matches.h"

#include <zstd.h>
#include <zstd_errors.h>

#include <new>
#include <string>

#include "base/error.h"

namespace pyckpt::zstd {
namespace {

void RequireZstd(std::size_t result, const char* doing) {
  if (ZSTD_isError(result) == 0) return;
  throw Error(ErrorKind::kCodec,
              std::string("libzstd: ") + doing + " failed: " + ZSTD_getErrorName(result));
}

}  // namespace

MatchCompressor::~MatchCompressor() { ZSTD_freeCCtx(context_); }

std::uint8_t* MatchCompressor::Write(Span raw, std::size_t most_nbytes, std::uint8_t* out) {
  if (context_ == nullptr) {
    context_ = ZSTD_createCCtx();
    if (context_ == nullptr) throw std::bad_alloc();
    RequireZstd(ZSTD_CCtx_setParameter(context_, ZSTD_c_compressionLevel, level_), "the level");
    RequireZstd(ZSTD_CCtx_setParameter(context_, ZSTD_c_checksumFlag, 1), "the checksum");
  }
  const std::size_t nbytes = ZSTD_compress2(context_, out, most_nbytes, raw.data, raw.nbytes);
  switch (ZSTD_getErrorCode(nbytes)) {
    case ZSTD_error_no_error:
      return out + nbytes;
    case ZSTD_error_dstSize_tooSmall:
      return nullptr;
    case ZSTD_error_memory_allocation:
      throw std::bad_alloc();
    default:
      RequireZstd(nbytes, "a frame");
      return nullptr;
  }
}

}  // namespace pyckpt::zstd
