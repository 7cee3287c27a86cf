#include "write/exchange_names.h"

#include <fcntl.h>

#include <cerrno>

#include "base/error.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pyckpt {
namespace {

#if defined(__linux__)

// The kernel is asked itself. A wheel may be built with a libc or with headers that are older than
// the kernel on which it runs, and then they lack the call, the flag, or the number.
constexpr unsigned kExchange = 1U << 1U;  // RENAME_EXCHANGE
#if defined(SYS_renameat2)
constexpr long kRenameat2 = SYS_renameat2;
#elif defined(__x86_64__)
constexpr long kRenameat2 = 316;
#elif defined(__aarch64__)
constexpr long kRenameat2 = 276;
#else
#error "the number of the system call renameat2 is not known"
#endif

int Exchange(const std::string& a, const std::string& b) {
  return static_cast<int>(syscall(kRenameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), kExchange));
}

#else

int Exchange(const std::string& /*a*/, const std::string& /*b*/) {
  errno = ENOSYS;
  return -1;
}

#endif

}  // namespace

bool ExchangeNames(const std::string& a, const std::string& b) {
  int status = 0;
  do {
    status = Exchange(a, b);
  } while (status == -1 && errno == EINTR);
  if (status == 0) return true;
  // EINVAL: the file system does not know the flag.
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  throw Error::System(errno, "cannot exchange the new folder with", b);
}

}  // namespace pyckpt
