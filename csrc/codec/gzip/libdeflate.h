// A decompressor of libdeflate, with its owner.
#ifndef PYCKPT_CODEC_GZIP_LIBDEFLATE_H_
#define PYCKPT_CODEC_GZIP_LIBDEFLATE_H_

#include <libdeflate.h>

#include <new>

namespace pyckpt::gzip {

// Throws std::bad_alloc if there is no memory for it.
class Libdeflate {
 public:
  Libdeflate() : decompressor_(libdeflate_alloc_decompressor()) {
    if (decompressor_ == nullptr) throw std::bad_alloc();
  }
  Libdeflate(const Libdeflate&) = delete;
  Libdeflate& operator=(const Libdeflate&) = delete;
  ~Libdeflate() { libdeflate_free_decompressor(decompressor_); }

  libdeflate_decompressor* get() const { return decompressor_; }

 private:
  libdeflate_decompressor* decompressor_;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_LIBDEFLATE_H_
