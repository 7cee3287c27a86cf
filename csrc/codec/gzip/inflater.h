// Decodes one deflate stream, in pieces of any size.
#ifndef PYCKPT_CODEC_GZIP_INFLATER_H_
#define PYCKPT_CODEC_GZIP_INFLATER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/bytes.h"

struct z_stream_s;

namespace pyckpt::gzip {

// Can be started many times; starting is cheap.
class Inflater {
 public:
  Inflater();
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  ~Inflater();

  // Starts at byte begin of file. The file's bytes must stay valid while this decodes.
  void Start(Span file, std::uint64_t begin);

  // Decodes the next nbytes bytes to out and returns how many it wrote. It returns fewer only at
  // the end of the stream or of the file. Throws Error::Corrupt.
  std::size_t Inflate(std::uint8_t* out, std::size_t nbytes);

  // Whether the stream's last block has ended. offset() is then the byte after it.
  bool ended() const { return ended_; }
  std::uint64_t offset() const;  // in the file, in bytes

 private:
  std::unique_ptr<z_stream_s> state_;
  Span file_;
  std::uint64_t given_ = 0;  // how far into the file zlib was given bytes
  bool ended_ = false;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_INFLATER_H_
