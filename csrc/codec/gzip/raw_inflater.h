// Decodes deflate data (RFC 1951) whose place and size are known, such as the records of zip files.
#ifndef PYCKPT_CODEC_GZIP_RAW_INFLATER_H_
#define PYCKPT_CODEC_GZIP_RAW_INFLATER_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "codec/gzip/inflater.h"
#include "codec/gzip/libdeflate.h"

namespace pyckpt::gzip {

enum class Inflated {
  kWhole,
  kDamaged,
  kOfOtherSize,
};

// Each worker has one. Memory: 100 kB, and a copy of the code of one chunk.
class RawInflater {
 public:
  // Decodes code to the nbytes bytes at out. It must be a whole stream, or a chunk that another one
  // follows (deflater.h).
  Inflated InflateStream(Span code, std::uint8_t* out, std::size_t nbytes);
  Inflated InflateChunk(Span code, std::uint8_t* out, std::size_t nbytes);

  // Sets crc to the CRC-32 of the nbytes bytes of a whole stream, which are not kept. Takes twice
  // as long.
  Inflated InflateToCrc(Span code, std::uint64_t nbytes, std::uint32_t* crc);

 private:
  Libdeflate libdeflate_;
  Inflater inflater_;
  Buffer buffer_;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_RAW_INFLATER_H_
