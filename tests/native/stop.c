/* Loaded before libc (LD_PRELOAD): stops a process at one of its writes.
 *
 * stop_at(3, 0) sends SIGKILL before the third call from now on that changes a file system;
 * stop_at(3, 28) lets that call fail with errno 28. stop_count() returns how many there were. Calls
 * count that make, name, move, remove, flush, or cut files and folders, and writes to files.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long count;
static long stop;
static int error;

void stop_at(long number, int new_error) {
  atomic_store(&count, 0);
  error = new_error;
  stop = number;
}

long stop_count(void) { return atomic_load(&count); }

/* Whether the call that follows shall fail. errno is set then. */
static int stops(void) {
  if (atomic_fetch_add(&count, 1) + 1 != stop) return 0;
  if (error == 0) kill(getpid(), SIGKILL);
  errno = error;
  return 1;
}

static int is_file(int fd) {
  struct stat status;
  return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

#define CALL(type, name, parameters, arguments)                 \
  type name parameters {                                        \
    if (stops()) return -1;                                     \
    return ((type(*) parameters)dlsym(RTLD_NEXT, #name))arguments; \
  }
#define WRITE(type, name, parameters, arguments)                \
  type name parameters {                                        \
    if (is_file(fd) && stops()) return -1;                      \
    return ((type(*) parameters)dlsym(RTLD_NEXT, #name))arguments; \
  }

WRITE(ssize_t, write, (int fd, const void* data, size_t size), (fd, data, size))
WRITE(ssize_t, writev, (int fd, const struct iovec* parts, int n), (fd, parts, n))
WRITE(ssize_t, pwrite, (int fd, const void* data, size_t size, off_t at), (fd, data, size, at))
WRITE(ssize_t, pwrite64, (int fd, const void* data, size_t size, off64_t at), (fd, data, size, at))
WRITE(ssize_t, pwritev, (int fd, const struct iovec* parts, int n, off_t at), (fd, parts, n, at))
WRITE(ssize_t, pwritev64, (int fd, const struct iovec* parts, int n, off64_t at),
      (fd, parts, n, at))
WRITE(ssize_t, pwritev2, (int fd, const struct iovec* parts, int n, off_t at, int flags),
      (fd, parts, n, at, flags))
WRITE(ssize_t, pwritev64v2, (int fd, const struct iovec* parts, int n, off64_t at, int flags),
      (fd, parts, n, at, flags))
WRITE(int, ftruncate, (int fd, off_t size), (fd, size))
WRITE(int, ftruncate64, (int fd, off64_t size), (fd, size))
WRITE(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
WRITE(int, fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))
CALL(int, fsync, (int fd), (fd))
CALL(int, fdatasync, (int fd), (fd))
CALL(int, syncfs, (int fd), (fd))
CALL(int, mkdir, (const char* path, mode_t mode), (path, mode))
CALL(int, mkdirat, (int fd, const char* path, mode_t mode), (fd, path, mode))
CALL(int, rmdir, (const char* path), (path))
CALL(int, unlink, (const char* path), (path))
CALL(int, unlinkat, (int fd, const char* path, int flags), (fd, path, flags))
CALL(int, link, (const char* from, const char* to), (from, to))
CALL(int, linkat, (int from_fd, const char* from, int to_fd, const char* to, int flags),
     (from_fd, from, to_fd, to, flags))
CALL(int, symlink, (const char* from, const char* to), (from, to))
CALL(int, rename, (const char* from, const char* to), (from, to))
CALL(int, renameat, (int from_fd, const char* from, int to_fd, const char* to),
     (from_fd, from, to_fd, to))
CALL(int, renameat2, (int from_fd, const char* from, int to_fd, const char* to, unsigned flags),
     (from_fd, from, to_fd, to, flags))

#define OPEN(name, parameters, ...)                                            \
  int name parameters {                                                        \
    va_list rest;                                                              \
    va_start(rest, flags);                                                     \
    const mode_t mode = va_arg(rest, mode_t);                                  \
    va_end(rest);                                                              \
    if ((flags & (O_CREAT | O_TMPFILE)) != 0 && (flags & O_ACCMODE) != O_RDONLY && stops()) return -1; \
    return ((int(*) parameters)dlsym(RTLD_NEXT, #name))(__VA_ARGS__, mode);    \
  }

OPEN(open, (const char* path, int flags, ...), path, flags)
OPEN(open64, (const char* path, int flags, ...), path, flags)
OPEN(openat, (int fd, const char* path, int flags, ...), fd, path, flags)
OPEN(openat64, (int fd, const char* path, int flags, ...), fd, path, flags)
