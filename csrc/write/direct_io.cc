#include "write/direct_io.h"

#include <fcntl.h>

#if defined(__linux__)
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#endif

#include <algorithm>

namespace pyckpt {

#if defined(__linux__) && defined(O_DIRECT)
namespace {

// A page. Devices have blocks of 512 or of 4096 bytes.
constexpr std::size_t kUsualAlignment = 4096;

// These accept O_DIRECT and ignore it, since the page cache is all that they have.
bool KeepsFilesInMemory(int fd) {
  struct statfs system {};
  return fstatfs(fd, &system) == 0 &&
         (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC);
}

// 0 if the file takes no direct writes.
std::size_t Alignment(int fd) {
#if defined(STATX_DIOALIGN)
  struct statx told {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &told) == 0 &&
      (told.stx_mask & STATX_DIOALIGN) != 0) {
    const std::size_t needed = std::max(told.stx_dio_mem_align, told.stx_dio_offset_align);
    return needed == 0 ? 0 : std::max(needed, kUsualAlignment);
  }
#endif
  return kUsualAlignment;
}

}  // namespace

std::size_t StartDirectIo(int fd, std::size_t most_nbytes) {
  if (KeepsFilesInMemory(fd)) return 0;
  const std::size_t alignment = Alignment(fd);
  if (alignment == 0 || alignment > most_nbytes || (alignment & (alignment - 1)) != 0) return 0;
  const int flags = fcntl(fd, F_GETFL);
  if (flags == -1 || fcntl(fd, F_SETFL, flags | O_DIRECT) == -1) return 0;
  return alignment;
}

void StopDirectIo(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags != -1) fcntl(fd, F_SETFL, flags & ~O_DIRECT);
}

#else

std::size_t StartDirectIo(int /*fd*/, std::size_t /*most_nbytes*/) { return 0; }

void StopDirectIo(int /*fd*/) {}

#endif

}  // namespace pyckpt
