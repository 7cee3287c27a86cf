#include "base/file_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/error.h"

namespace pyckpt {

FileSource::FileSource(std::string path) : path_(std::move(path)) {
  fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ == -1) throw Error::System(errno, "cannot open", path_);
  struct stat status {};
  if (fstat(fd_, &status) != 0) {
    const int error_number = errno;
    close(fd_);
    throw Error::System(error_number, "cannot get the size of", path_);
  }
  nbytes_ = static_cast<std::uint64_t>(status.st_size);
}

std::shared_ptr<FileMap> FileSource::Map() const {
  return std::make_shared<FileMap>(fd_, nbytes_, FileMap::Writes::kForbidden, path_);
}

FileSource::~FileSource() { close(fd_); }

void FileSource::Read(std::uint64_t offset, std::size_t nbytes, std::uint8_t* out) {
  while (nbytes != 0) {
    const ssize_t n = pread(fd_, out, nbytes, static_cast<off_t>(offset));
    if (n == -1 && errno == EINTR) continue;
    if (n == -1) throw Error::System(errno, "cannot read", path_);
    if (n == 0) throw Error::System(EIO, "became shorter while it was read", path_);
    out += n;
    offset += static_cast<std::uint64_t>(n);
    nbytes -= static_cast<std::size_t>(n);
  }
}

}  // namespace pyckpt
