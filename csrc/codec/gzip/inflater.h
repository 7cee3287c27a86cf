// Decodes one stream of deflate, in pieces of any size.
#ifndef PYCKPT_CODEC_GZIP_INFLATER_H_
#define PYCKPT_CODEC_GZIP_INFLATER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/bytes.h"

struct z_stream_s;

namespace pyckpt::gzip {

// May be started again, which costs little.
class Inflater {
 public:
  Inflater();
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  ~Inflater();

  // The code begins at byte begin of file, whose bytes have to stay valid.
  void Start(Span file, std::uint64_t begin);

  // Decodes the next bytes to out; fewer than nbytes at the end of the stream
  // or of the file alone. Throws Error::Corrupt.
  std::size_t Inflate(std::uint8_t* out, std::size_t nbytes);

  // Whether the stream's last block has ended; offset() is then behind it.
  bool ended() const { return ended_; }
  std::uint64_t offset() const;  // in the file

 private:
  std::unique_ptr<z_stream_s> state_;
  Span file_;
  std::uint64_t given_ = 0;  // up to where the library has been shown the file
  bool ended_ = false;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_INFLATER_H_
