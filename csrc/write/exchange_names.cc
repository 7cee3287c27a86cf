#include "write/exchange_names.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdio>

#include "base/error.h"

namespace pyckpt {

bool ExchangeNames(const std::string& a, const std::string& b) {
#if defined(RENAME_EXCHANGE)
  if (renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  // EINVAL: the file system does not know the flag.
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  throw Error::System(errno, "cannot exchange the new folder with", b);
#else
  (void)a;
  (void)b;
  return false;
#endif
}

}  // namespace pyckpt
