/* Lets one system call fail: see seam.h.
 *
 * fault_retried() says whether a file was flushed again after a flush of it had failed.
 *
 * Calls of the kernel that libc makes itself, such as those of opendir(), are not seen, so opendir()
 * is a kind of its own. Reads and writes count if they are of regular files.
 */
#define _GNU_SOURCE
#define KINDS                                                                                   \
  X(open) X(open_unnamed) X(open_folder) X(opendir) X(read) X(write) X(fallocate) X(ftruncate)   \
  X(fsync) X(fsync_folder) X(syncfs) X(rename) X(exchange) X(link) X(symlink) X(mkdir) X(unlink) \
  X(rmdir) X(close) X(mmap) X(thread) X(fcntl) X(flock) X(dup) X(stat) X(access) X(chmod) X(chown) \
  X(xattr) X(memfd)
#include "seam.h"

#include "libraries.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define REAL(type, name, parameters) ((type(*) parameters)dlsym(RTLD_NEXT, #name))

static struct stat unflushed; /* the file whose flush has failed */
static atomic_int is_unflushed;
static atomic_int retried;

/* Also forgets it. */
int fault_retried(void) {
  atomic_store(&is_unflushed, 0);
  return atomic_exchange(&retried, 0);
}

static int status_of(int fd, struct stat* out) {
  const int saved = errno;
  const int found = REAL(int, fstat, (int, struct stat*))(fd, out) == 0;
  errno = saved;
  return found;
}

static int is_file(int fd) {
  struct stat status;
  return atomic_load(&counting) && status_of(fd, &status) && S_ISREG(status.st_mode);
}

static int is_folder(int fd) {
  struct stat status;
  return atomic_load(&counting) && status_of(fd, &status) && S_ISDIR(status.st_mode);
}

static void note_path(const char* path) { snprintf(place, sizeof(place), "%s", path); }

static void note_file(int fd) {
  char link[64];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t n =
      REAL(ssize_t, readlink, (const char*, char*, size_t))(link, place, sizeof(place) - 1);
  place[n < 0 ? 0 : n] = 0;
}

/* What is planned for a call. errno is set if it fails. */
static int fails_at(enum kind kind, const char* path) {
  const int error = planned(kind);
  if (error == 0) return 0;
  if (path != NULL) note_path(path);
  if (error > 0) errno = error;
  return error;
}

static int fails_on(enum kind kind, int fd) {
  const int error = planned(kind);
  if (error == 0) return 0;
  note_file(fd);
  if (error > 0) errno = error;
  return error;
}

#define CALL_AT(type, kind, name, path, parameters, arguments) \
  type name parameters {                                       \
    if (fails_at(k_##kind, path)) return -1;                   \
    return REAL(type, name, parameters) arguments;             \
  }
#define CALL_ON(type, kind, name, fd, parameters, arguments) \
  type name parameters {                                     \
    if (fails_on(k_##kind, fd)) return -1;                   \
    return REAL(type, name, parameters) arguments;           \
  }

/* Reads and writes. */

#define TRANSFER(kind, name, parameters, whole, half)                  \
  ssize_t name parameters {                                            \
    const int error = is_file(fd) ? fails_on(k_##kind, fd) : 0;        \
    if (error > 0) return -1;                                          \
    if (error == kShort && size > 1) return REAL(ssize_t, name, parameters) half; \
    return REAL(ssize_t, name, parameters) whole;                      \
  }

TRANSFER(write, write, (int fd, const void* data, size_t size), (fd, data, size),
         (fd, data, size / 2))
TRANSFER(write, pwrite, (int fd, const void* data, size_t size, off_t at), (fd, data, size, at),
         (fd, data, size / 2, at))
TRANSFER(write, pwrite64, (int fd, const void* data, size_t size, off64_t at),
         (fd, data, size, at), (fd, data, size / 2, at))
TRANSFER(read, read, (int fd, void* data, size_t size), (fd, data, size), (fd, data, size / 2))
TRANSFER(read, pread, (int fd, void* data, size_t size, off_t at), (fd, data, size, at),
         (fd, data, size / 2, at))
TRANSFER(read, pread64, (int fd, void* data, size_t size, off64_t at), (fd, data, size, at),
         (fd, data, size / 2, at))

enum { kBlock = 4096 }; /* where a direct write may end */

static ssize_t write_vector(int fd, const struct iovec* parts, int n, off64_t at, int flags) {
  typedef ssize_t (*Write)(int, const struct iovec*, int, off64_t, int);
  const int error = is_file(fd) ? fails_on(k_write, fd) : 0;
  if (error > 0) return -1;
  struct iovec first = parts[0];
  const int mode = REAL(int, fcntl, (int, int, ...))(fd, F_GETFL);
  const size_t block = mode & O_DIRECT ? kBlock : 1;
  if (error == kShort && first.iov_len > block) {
    first.iov_len = (first.iov_len / 2 + block - 1) / block * block;
    parts = &first;
    n = 1;
  }
  return ((Write)dlsym(RTLD_NEXT, "pwritev64v2"))(fd, parts, n, at, flags);
}

ssize_t pwritev(int fd, const struct iovec* parts, int n, off_t at) {
  return write_vector(fd, parts, n, at, 0);
}
ssize_t pwritev64(int fd, const struct iovec* parts, int n, off64_t at) {
  return write_vector(fd, parts, n, at, 0);
}
ssize_t pwritev2(int fd, const struct iovec* parts, int n, off_t at, int flags) {
  return write_vector(fd, parts, n, at, flags);
}
ssize_t pwritev64v2(int fd, const struct iovec* parts, int n, off64_t at, int flags) {
  return write_vector(fd, parts, n, at, flags);
}

/* What a file is. */

CALL_ON(int, fallocate, fallocate, fd, (int fd, int mode, off_t at, off_t size),
        (fd, mode, at, size))
CALL_ON(int, fallocate, fallocate64, fd, (int fd, int mode, off64_t at, off64_t size),
        (fd, mode, at, size))
CALL_ON(int, ftruncate, ftruncate, fd, (int fd, off_t size), (fd, size))
CALL_ON(int, ftruncate, ftruncate64, fd, (int fd, off64_t size), (fd, size))
CALL_ON(int, chmod, fchmod, fd, (int fd, mode_t mode), (fd, mode))
CALL_AT(int, chmod, chmod, path, (const char* path, mode_t mode), (path, mode))
CALL_ON(int, chown, fchown, fd, (int fd, uid_t user, gid_t group), (fd, user, group))
CALL_ON(int, xattr, fsetxattr, fd,
        (int fd, const char* name, const void* value, size_t size, int flags),
        (fd, name, value, size, flags))
CALL_AT(ssize_t, xattr, getxattr, path,
        (const char* path, const char* name, void* value, size_t size), (path, name, value, size))
CALL_AT(ssize_t, xattr, listxattr, path, (const char* path, char* list, size_t size),
        (path, list, size))

static int flush(const char* name, int fd) {
  struct stat status;
  const int folder = is_folder(fd);
  if (atomic_load(&counting) && !folder && status_of(fd, &status)) {
    if (atomic_load(&is_unflushed) && status.st_dev == unflushed.st_dev &&
        status.st_ino == unflushed.st_ino) {
      atomic_store(&retried, 1);
    }
    const int error = fails_on(k_fsync, fd);
    if (error != 0) {
      unflushed = status;
      if (error != EINTR) atomic_store(&is_unflushed, 1);
      return -1;
    }
  } else if (folder && fails_on(k_fsync_folder, fd)) {
    return -1;
  }
  return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}

int fsync(int fd) { return flush("fsync", fd); }
int fdatasync(int fd) { return flush("fdatasync", fd); }
CALL_ON(int, syncfs, syncfs, fd, (int fd), (fd))

/* Names. */

CALL_AT(int, rename, rename, to, (const char* from, const char* to), (from, to))
CALL_AT(int, rename, renameat, to, (int from_fd, const char* from, int to_fd, const char* to),
        (from_fd, from, to_fd, to))
CALL_AT(int, link, link, to, (const char* from, const char* to), (from, to))
CALL_AT(int, link, linkat, to,
        (int from_fd, const char* from, int to_fd, const char* to, int flags),
        (from_fd, from, to_fd, to, flags))
CALL_AT(int, symlink, symlink, to, (const char* from, const char* to), (from, to))
CALL_AT(int, symlink, symlinkat, to, (const char* from, int to_fd, const char* to),
        (from, to_fd, to))
CALL_AT(int, mkdir, mkdir, path, (const char* path, mode_t mode), (path, mode))
CALL_AT(int, mkdir, mkdirat, path, (int fd, const char* path, mode_t mode), (fd, path, mode))
CALL_AT(int, rmdir, rmdir, path, (const char* path), (path))
CALL_AT(int, unlink, unlink, path, (const char* path), (path))

int unlinkat(int fd, const char* path, int flags) {
  if (fails_at(flags & AT_REMOVEDIR ? k_rmdir : k_unlink, path)) return -1;
  return REAL(int, unlinkat, (int, const char*, int))(fd, path, flags);
}

static long (*ask_kernel)(long number, ...) = NULL;

__attribute__((constructor)) static void find_kernel(void) {
  ask_kernel = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
}

/* The core asks the kernel itself for the exchange. A call takes six words at most. */
long syscall(long number, ...) {
  long words[6];
  va_list rest;
  va_start(rest, number);
  for (int i = 0; i < 6; ++i) words[i] = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_renameat2 && fails_at(k_exchange, (const char*)words[3])) return -1;
  if (ask_kernel == NULL) find_kernel();
  return ask_kernel(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}

/* Descriptors. */

static int open_kind(int flags) {
  if ((flags & O_TMPFILE) == O_TMPFILE) return k_open_unnamed;
  return flags & O_DIRECTORY ? k_open_folder : k_open;
}

#define OPEN(name, parameters, types, ...)                                  \
  int name parameters {                                                     \
    va_list rest;                                                           \
    va_start(rest, flags);                                                  \
    const mode_t mode = va_arg(rest, mode_t);                               \
    va_end(rest);                                                           \
    if (fails_at((enum kind)open_kind(flags), path)) return -1;             \
    return ((int(*) types)dlsym(RTLD_NEXT, #name))(__VA_ARGS__, mode);      \
  }

OPEN(open, (const char* path, int flags, ...), (const char*, int, ...), path, flags)
OPEN(open64, (const char* path, int flags, ...), (const char*, int, ...), path, flags)
OPEN(openat, (int fd, const char* path, int flags, ...), (int, const char*, int, ...), fd, path,
     flags)
OPEN(openat64, (int fd, const char* path, int flags, ...), (int, const char*, int, ...), fd, path,
     flags)

CALL_AT(int, memfd, memfd_create, name, (const char* name, unsigned flags), (name, flags))

DIR* opendir(const char* path) {
  if (fails_at(k_opendir, path)) return NULL;
  return REAL(DIR*, opendir, (const char*))(path);
}

DIR* fdopendir(int fd) {
  if (fails_on(k_opendir, fd)) return NULL;
  return REAL(DIR*, fdopendir, (int))(fd);
}

/* The descriptor is gone all the same, as in Linux. */
int close(int fd) {
  const int error = is_file(fd) || is_folder(fd) ? fails_on(k_close, fd) : 0;
  const int status = REAL(int, close, (int))(fd);
  if (error == 0) return status;
  errno = error;
  return -1;
}

static int control(const char* name, int fd, int command, void* argument) {
  const int is_copy = command == F_DUPFD || command == F_DUPFD_CLOEXEC;
  if (command != F_GETFD && fails_on(is_copy ? k_dup : k_fcntl, fd)) return -1;
  return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, name))(fd, command, argument);
}

#define CONTROL(name)                          \
  int name(int fd, int command, ...) {         \
    va_list rest;                              \
    va_start(rest, command);                   \
    void* argument = va_arg(rest, void*);      \
    va_end(rest);                              \
    return control(#name, fd, command, argument); \
  }
CONTROL(fcntl)
CONTROL(fcntl64)

CALL_ON(int, flock, flock, fd, (int fd, int operation), (fd, operation))

/* What is there. */

CALL_AT(int, access, access, path, (const char* path, int mode), (path, mode))
CALL_AT(int, stat, stat, path, (const char* path, struct stat* out), (path, out))
CALL_AT(int, stat, stat64, path, (const char* path, struct stat64* out), (path, out))
CALL_AT(int, stat, lstat, path, (const char* path, struct stat* out), (path, out))
CALL_AT(int, stat, lstat64, path, (const char* path, struct stat64* out), (path, out))
CALL_ON(int, stat, fstat, fd, (int fd, struct stat* out), (fd, out))
CALL_ON(int, stat, fstat64, fd, (int fd, struct stat64* out), (fd, out))
CALL_AT(int, stat, fstatat, path, (int fd, const char* path, struct stat* out, int flags),
        (fd, path, out, flags))
CALL_AT(int, stat, fstatat64, path, (int fd, const char* path, struct stat64* out, int flags),
        (fd, path, out, flags))
CALL_AT(int, stat, statx, path,
        (int fd, const char* path, int flags, unsigned mask, struct statx* out),
        (fd, path, flags, mask, out))

/* Memory and threads. */

static int map_fails(void* caller) {
  return library_at((uintptr_t)caller) == kCore && fails_at(k_mmap, NULL);
}

#define MAP(name, offset_type)                                                              \
  void* name(void* address, size_t size, int protection, int flags, int fd, offset_type at) { \
    if (map_fails(__builtin_return_address(0))) return MAP_FAILED;                          \
    return REAL(void*, name, (void*, size_t, int, int, int, offset_type))(                  \
        address, size, protection, flags, fd, at);                                          \
  }
MAP(mmap, off_t)
MAP(mmap64, off64_t)

void* mremap(void* address, size_t size, size_t new_size, int flags, ...) {
  if (map_fails(__builtin_return_address(0))) return MAP_FAILED;
  return REAL(void*, mremap, (void*, size_t, size_t, int, ...))(address, size, new_size, flags);
}

/* Returns the error, as pthread_create does. */
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) {
  const int error = fails_at(k_thread, NULL);
  if (error > 0) return error;
  return REAL(int, pthread_create, (pthread_t*, const pthread_attr_t*, void* (*)(void*), void*))(
      thread, attributes, run, argument);
}
