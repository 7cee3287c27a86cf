#include "base/file_source.h"

#include <unistd.h>

#include <cerrno>

#include "base/error.h"

namespace pyckpt {

void FileSource::Read(std::uint64_t offset, std::size_t nbytes, std::uint8_t* out) {
  while (nbytes != 0) {
    const ssize_t n = pread(file_->fd(), out, nbytes, static_cast<off_t>(offset));
    if (n == -1 && errno == EINTR) continue;
    if (n == -1) throw Error::System(errno, "cannot read", file_->path());
    if (n == 0) throw Error::System(EIO, "became shorter while it was read", file_->path());
    out += n;
    offset += static_cast<std::uint64_t>(n);
    nbytes -= static_cast<std::size_t>(n);
  }
}

}  // namespace pyckpt
