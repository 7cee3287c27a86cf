#include "codec/xz/coder.h"

#include <new>
#include <string>

#include "base/error.h"

namespace pyckpt::xz {

void RequireDecoded(lzma_ret status, const char* what, std::uint64_t offset) {
  switch (status) {
    case LZMA_OK:
    case LZMA_STREAM_END:
      return;
    case LZMA_MEM_ERROR:
      throw std::bad_alloc();
    case LZMA_MEMLIMIT_ERROR:
      throw Error::Corrupt(std::string("xz: ") + what + " asks for too much memory", offset);
    case LZMA_OPTIONS_ERROR:
    case LZMA_UNSUPPORTED_CHECK:
      throw Error::Corrupt(std::string("xz: ") + what + " is of an unknown kind", offset);
    case LZMA_BUF_ERROR:
      throw Error::Corrupt(std::string("xz: ") + what + " is cut off", offset);
    default:
      throw Error::Corrupt(std::string("xz: ") + what + " is damaged", offset);
  }
}

}  // namespace pyckpt::xz
