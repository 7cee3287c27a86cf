#include "base/guarded_copy.h"

#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "base/error.h"

namespace pyckpt {
namespace {

// Returns the number of bytes copied, or -1 with errno.
ssize_t CopyThroughKernel(std::uint8_t* to, const std::uint8_t* from, std::size_t nbytes) {
#ifdef __linux__
  const iovec target{to, nbytes};
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast): the kernel does not write there.
  const iovec source{const_cast<std::uint8_t*>(from), nbytes};
  return process_vm_readv(getpid(), &target, 1, &source, 1, 0);
#else
  errno = ENOSYS;
  return -1;
#endif
}

}  // namespace

void GuardedCopy(std::uint8_t* to, const std::uint8_t* from, std::size_t nbytes) {
  while (nbytes != 0) {
    const ssize_t copied = CopyThroughKernel(to, from, nbytes);
    if (copied <= 0) {
      throw Error::System(copied == 0 ? EFAULT : errno,
                          "cannot read memory that was saved in place", "");
    }
    to += copied;
    from += copied;
    nbytes -= static_cast<std::size_t>(copied);
  }
}

bool CanGuardCopies() {
  static const bool can = [] {
    const std::uint8_t from = 1;
    std::uint8_t to = 0;
    return CopyThroughKernel(&to, &from, 1) == 1 && to == 1;
  }();
  return can;
}

}  // namespace pyckpt
