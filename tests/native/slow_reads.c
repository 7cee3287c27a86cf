/* Loaded before libc (LD_PRELOAD): what is read through the kernel is read late.
 *
 * A thread that reads more than a few bytes by process_vm_readv() has begun for half a second before
 * the first byte is read.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/uio.h>
#include <unistd.h>

typedef ssize_t (*Read)(pid_t, const struct iovec*, unsigned long, const struct iovec*,
                        unsigned long, unsigned long);

ssize_t process_vm_readv(pid_t pid, const struct iovec* local, unsigned long locals,
                         const struct iovec* remote, unsigned long remotes, unsigned long flags) {
  if (local->iov_len > 64) usleep(500000);
  return ((Read)dlsym(RTLD_NEXT, "process_vm_readv"))(pid, local, locals, remote, remotes, flags);
}
