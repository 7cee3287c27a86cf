#include "base/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/error.h"

namespace pyckpt {
namespace {

// O_NONBLOCK: to open a pipe could take forever.
int Open(const std::string& path) {
  int fd = -1;
  do {
    fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (fd == -1 && errno == EINTR);
  return fd;
}

}  // namespace

OpenFile::OpenFile(std::string path) : path_(std::move(path)), fd_(Open(path_)) { Examine(); }

OpenFile::OpenFile(int fd, std::string name, std::shared_ptr<Supply> supply)
    : path_(std::move(name)), fd_(fcntl(fd, F_DUPFD_CLOEXEC, 0)), supply_(std::move(supply)) {
  Examine();
}

OpenFile::~OpenFile() { close(fd_); }

void OpenFile::Examine() {
  if (fd_ == -1) throw Error::System(errno, "cannot open", path_);
  struct stat status {};
  int error_number = fstat(fd_, &status) == 0 ? 0 : errno;
  const char* doing = "cannot read";
  if (error_number == 0 && S_ISDIR(status.st_mode)) {
    error_number = EISDIR;
  } else if (error_number == 0 && !S_ISREG(status.st_mode)) {
    error_number = ESPIPE;
    doing = "cannot read (only regular files, no pipes and devices)";
  }
  if (error_number != 0) {
    close(fd_);
    throw Error::System(error_number, doing, path_);
  }
  nbytes_ = static_cast<std::uint64_t>(status.st_size);
}

}  // namespace pyckpt
