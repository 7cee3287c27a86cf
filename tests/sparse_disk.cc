// Preloaded into a process, makes every disk one on which zeros take no room:
// what pwritev() is to write and is all zeros becomes a hole, and fallocate()
// is not known. So a test writes files of many GiB through the whole of the
// real writer, without the disk that they would take and the time.
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

int fallocate(int, int, off_t, off_t) {
  errno = EOPNOTSUPP;
  return -1;
}

int fallocate64(int fd, int mode, off_t offset, off_t nbytes) {
  return fallocate(fd, mode, offset, nbytes);
}

}  // extern "C"
