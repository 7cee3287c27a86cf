// Preload this library into a process to make its files sparse: pwritev() and pwritev2() leave
// a hole for each buffer that is all zeros, and fallocate() fails with EOPNOTSUPP.
// So a test can run the real writer on files of many GiB, and needs neither the
// disk space nor the time.
#include <cerrno>
#include <cstring>

#include <sys/uio.h>
#include <unistd.h>

namespace {

bool IsZero(const iovec& part) {
  const char* bytes = static_cast<const char*>(part.iov_base);
  return part.iov_len == 0 ||
         (bytes[0] == 0 && std::memcmp(bytes, bytes + 1, part.iov_len - 1) == 0);
}

}  // namespace

extern "C" {

ssize_t pwritev(int fd, const iovec* parts, int count, off_t offset) {
  ssize_t done = 0;
  for (int i = 0; i < count; ++i) {
    if (!IsZero(parts[i])) {
      const ssize_t written = pwrite(fd, parts[i].iov_base, parts[i].iov_len, offset + done);
      if (written != static_cast<ssize_t>(parts[i].iov_len)) {
        return written == -1 ? -1 : done + written;
      }
    }
    done += static_cast<ssize_t>(parts[i].iov_len);
  }
  return done;
}

ssize_t pwritev64(int fd, const iovec* parts, int count, off_t offset) {
  return pwritev(fd, parts, count, offset);
}

ssize_t pwritev2(int fd, const iovec* parts, int count, off_t offset, int) {
  return pwritev(fd, parts, count, offset);
}

ssize_t pwritev64v2(int fd, const iovec* parts, int count, off_t offset, int) {
  return pwritev(fd, parts, count, offset);
}

int fallocate(int, int, off_t, off_t) {
  errno = EOPNOTSUPP;
  return -1;
}

int fallocate64(int fd, int mode, off_t offset, off_t nbytes) {
  return fallocate(fd, mode, offset, nbytes);
}

}  // extern "C"
