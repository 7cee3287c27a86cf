// Deflate blocks with matches, made by libdeflate. Good for integers and text.
#ifndef PYCKPT_CODEC_GZIP_MATCHES_H_
#define PYCKPT_CODEC_GZIP_MATCHES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/bit_writer.h"

struct libdeflate_compressor;

namespace pyckpt::gzip {

// libdeflate is twice as fast as zlib, but makes only complete streams. So the last block of its
// stream is found and its "last" bit is cleared; then other blocks can follow.
class MatchWriter {
 public:
  // level is libdeflate's, 1 to 9. Takes 0.8 MB of memory from the first Write() on.
  explicit MatchWriter(int level) : level_(level) {}
  MatchWriter(const MatchWriter&) = delete;
  MatchWriter& operator=(const MatchWriter&) = delete;
  ~MatchWriter();

  // Writes raw, which is not empty, as blocks, none of which is the last of the stream. If they
  // would take more than about most_nbytes, returns false and leaves writer unchanged.
  bool Write(Span raw, std::size_t most_nbytes, BitWriter* writer);

 private:
  int level_;
  libdeflate_compressor* compressor_ = nullptr;
  std::vector<std::uint8_t> inflated_;  // zlib's output, one piece at a time; not used
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_MATCHES_H_
