// Frames with matches, made by libzstd. Good for integers and text.
#ifndef PYCKPT_CODEC_ZSTD_MATCHES_H_
#define PYCKPT_CODEC_ZSTD_MATCHES_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

struct ZSTD_CCtx_s;

namespace pyckpt::zstd {

class MatchCompressor {
 public:
  // level is libzstd's, 1 to 19. Takes memory from the first Write() on: for 1 MiB of raw bytes 0.6
  // MB at level 1, 1.3 MB at level 3 and 18 MB at level 19.
  explicit MatchCompressor(int level) : level_(level) {}
  MatchCompressor(const MatchCompressor&) = delete;
  MatchCompressor& operator=(const MatchCompressor&) = delete;
  ~MatchCompressor();

  // Writes raw to out as one frame with its size and a checksum. Returns the end of it; null if it
  // would take more than most_nbytes.
  std::uint8_t* Write(Span raw, std::size_t most_nbytes, std::uint8_t* out);

 private:
  int level_;
  ZSTD_CCtx_s* context_ = nullptr;
};

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_MATCHES_H_
