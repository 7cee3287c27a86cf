#include "base/punch_hole.h"

#include <fcntl.h>

namespace pyckpt {

void PunchHole(int fd, std::uint64_t offset, std::uint64_t nbytes) {
#if defined(FALLOC_FL_PUNCH_HOLE)
  static_cast<void>(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              static_cast<off_t>(offset), static_cast<off_t>(nbytes)));
#else
  (void)fd;
  (void)offset;
  (void)nbytes;
#endif
}

}  // namespace pyckpt
