// Shared by all code that decodes with liblzma.
#ifndef PYCKPT_CODEC_XZ_CODER_H_
#define PYCKPT_CODEC_XZ_CODER_H_

#include <lzma.h>

#include <cstdint>

namespace pyckpt::xz {

// A liblzma coder. It reuses its memory for the next block.
struct Coder {
  Coder() = default;
  Coder(const Coder&) = delete;
  Coder& operator=(const Coder&) = delete;
  ~Coder() { lzma_end(&stream); }

  lzma_stream stream = LZMA_STREAM_INIT;
};

// Throws Corrupt (or std::bad_alloc, if liblzma is out of memory) if status is an error. what says
// what was decoded, for the message; offset is where it begins in the file.
void RequireDecoded(lzma_ret status, const char* what, std::uint64_t offset);

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_CODER_H_
