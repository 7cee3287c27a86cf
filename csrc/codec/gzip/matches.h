// Deflate blocks with matches, by libdeflate: what integers and text want.
#ifndef PYCKPT_CODEC_GZIP_MATCHES_H_
#define PYCKPT_CODEC_GZIP_MATCHES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/gzip/bit_writer.h"

struct libdeflate_compressor;

namespace pyckpt::gzip {

// libdeflate makes whole streams alone, twice as fast as zlib. Of such a stream the last
// block is found, and made one that others follow.
class MatchWriter {
 public:
  // 1 to 9: how hard matches are looked for. Holds 0.8 MB from the first Write() on.
  explicit MatchWriter(int level) : level_(level) {}
  MatchWriter(const MatchWriter&) = delete;
  MatchWriter& operator=(const MatchWriter&) = delete;
  ~MatchWriter();

  // Writes blocks, not the last of their stream, for raw, which is not empty. False, and
  // nothing written, where they take more than most_nbytes.
  bool Write(Span raw, std::size_t most_nbytes, BitWriter* writer);

 private:
  int level_;
  libdeflate_compressor* compressor_ = nullptr;
  std::vector<std::uint8_t> inflated_;  // a piece at a time, of no interest
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_MATCHES_H_
