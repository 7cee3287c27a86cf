#include "base/file_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/error.h"

namespace pyckpt {

FileMap::FileMap(const std::string& path, Writes writes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd == -1) throw Error::System(errno, "cannot open", path);
  struct stat status {};
  int error_number = fstat(fd, &status) == 0 ? 0 : errno;
  if (error_number == 0 && S_ISDIR(status.st_mode)) error_number = EISDIR;
  if (error_number == 0 && !S_ISREG(status.st_mode)) {
    close(fd);
    throw Error::System(ESPIPE, "cannot read (only regular files, no pipes and devices)", path);
  }
  if (error_number == 0) {
    error_number = Map(fd, static_cast<std::uint64_t>(status.st_size), writes);
  }
  close(fd);
  if (error_number != 0) throw Error::System(error_number, "cannot read", path);
}

FileMap::FileMap(int fd, std::uint64_t nbytes, Writes writes, const std::string& path) {
  const int error_number = Map(fd, nbytes, writes);
  if (error_number != 0) throw Error::System(error_number, "cannot read", path);
}

int FileMap::Map(int fd, std::uint64_t nbytes, Writes writes) {
  if (nbytes == 0) return 0;
  const int protection = PROT_READ | (writes == Writes::kToCopy ? PROT_WRITE : 0);
  void* address = mmap(nullptr, nbytes, protection, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
  if (address == MAP_FAILED) return errno;
  data_ = static_cast<std::uint8_t*>(address);
  nbytes_ = nbytes;
  return 0;
}

FileMap::~FileMap() {
  if (data_ != nullptr) munmap(data_, nbytes_);
}

}  // namespace pyckpt
