// Deflate data (RFC 1951) for chunks of tensors, without a header and a trailer: what gzip members
// and records of zip files hold.
#ifndef PYCKPT_CODEC_GZIP_DEFLATER_H_
#define PYCKPT_CODEC_GZIP_DEFLATER_H_

#include <cstddef>
#include <vector>

#include "base/bytes.h"
#include "codec/bit_writer.h"
#include "codec/chunk.h"
#include "codec/gzip/block.h"
#include "codec/gzip/matches.h"
#include "codec/repeats.h"
#include "codec/runs.h"

namespace pyckpt::gzip {

// Keeps its memory between chunks. What a level does: see encoder.h.
class Deflater {
 public:
  explicit Deflater(int level) : level_(level), matches_(level) {}

  // Writes the code of chunk to out, behind its first used bytes, and returns how many are used
  // then. The code begins and ends on a byte, refers to nothing before it, and none of its blocks
  // is the last of a stream. So the codes of several chunks can stand one after another.
  std::size_t Write(const Chunk& chunk, std::size_t used, Buffer* out);

 private:
  std::size_t WriteCoded(const std::vector<Run>& runs, std::size_t nbytes, std::size_t used,
                         Buffer* out);

  // The longest distance of a match.
  static constexpr std::size_t kWindowNbytes = std::size_t{32} << 10;

  int level_;
  Gatherer gatherer_;
  RepeatFinder finder_{kWindowNbytes};
  BlockWriter blocks_;
  MatchWriter matches_;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_DEFLATER_H_
