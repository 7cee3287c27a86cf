// What all decoding by liblzma shares.
#ifndef PYCKPT_CODEC_XZ_CODER_H_
#define PYCKPT_CODEC_XZ_CODER_H_

#include <lzma.h>

#include <cstdint>

namespace pyckpt::xz {

// A liblzma coder, whose memory serves one block after the other.
struct Coder {
  Coder() = default;
  Coder(const Coder&) = delete;
  Coder& operator=(const Coder&) = delete;
  ~Coder() { lzma_end(&stream); }

  lzma_stream stream = LZMA_STREAM_INIT;
};

// Throws Corrupt, or bad_alloc, if status is an error. what is what was decoded, which begins at
// offset of the file.
void RequireDecoded(lzma_ret status, const char* what, std::uint64_t offset);

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_CODER_H_
