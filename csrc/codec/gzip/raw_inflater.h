// Decodes deflate data (RFC 1951) whose place and size are known, such as the records of zip files.
#ifndef PYCKPT_CODEC_GZIP_RAW_INFLATER_H_
#define PYCKPT_CODEC_GZIP_RAW_INFLATER_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "codec/gzip/inflater.h"

struct libdeflate_decompressor;

namespace pyckpt::gzip {

// Deflate cannot expand more than this: a match of 258 bytes takes at least two bits.
inline constexpr std::uint64_t kMostExpansion = 1032;

// Each worker has one. Memory: 100 kB, and a copy of the code of one chunk. Errors are Corrupt,
// with an offset in the file.
class RawInflater {
 public:
  RawInflater();
  RawInflater(const RawInflater&) = delete;
  RawInflater& operator=(const RawInflater&) = delete;
  ~RawInflater();

  // Decodes code, which begins at byte offset of the file, to the nbytes bytes at out. It must be a
  // whole stream, or a chunk that another one follows (deflater.h).
  void InflateStream(Span code, std::uint64_t offset, std::uint8_t* out, std::size_t nbytes);
  void InflateChunk(Span code, std::uint64_t offset, std::uint8_t* out, std::size_t nbytes);

  // The CRC-32 of the nbytes bytes of a whole stream, which are not kept. Takes twice as long.
  std::uint32_t Crc(Span code, std::uint64_t offset, std::uint64_t nbytes);

 private:
  libdeflate_decompressor* inflate_;
  Inflater inflater_;
  Buffer buffer_;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_RAW_INFLATER_H_
