/* Loaded before libc (LD_PRELOAD): notes system calls of a save, and lets some fail as planned.
 *
 * calls_begin("fsync@1=5 pwritev@2=short") forgets what was noted and sets a plan. Each item names a
 * call, which of its calls from now on (* for all), and what happens: an errno; "short", which
 * writes half of the first piece; or "odd", which writes at least 1001 bytes and says 1001.
 * "kill" ends the process before the call is made. "disk@1000=full" stands for a disk that has 1000
 * bytes. "cache@*=only" stands for a file system that lets files become direct and refuses all writes
 * to them; they take long to become ordinary again.
 * calls_noted() returns "name(detail)" of each call, by spaces. pwritev2 counts as pwritev, and
 * "dontcache" is noted in front of it. Only mappings of 16 MiB are noted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kShort = -1, kOdd = -2, kLongest = 1 << 20, kBlock = 4096, kOddNbytes = 1001 };
enum { kDioAlign = 0x2000 /* STATX_DIOALIGN */, kSegmentsNbytes = 16 << 20 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char noted[kLongest];
static char plan[4096];
static struct { char name[32]; int count; } counts[32];

void calls_begin(const char* new_plan) {
  pthread_mutex_lock(&mutex);
  noted[0] = 0;
  memset(counts, 0, sizeof(counts));
  snprintf(plan, sizeof(plan), "%s", new_plan);
  pthread_mutex_unlock(&mutex);
}

const char* calls_noted(void) { return noted; }

/* Notes a call. Returns what is planned for it: 0, an errno, or kShort. */
static int note(const char* name, long detail) {
  char copy[sizeof(plan)];
  char* rest = copy;
  char* item;
  int result = 0;
  int number = 0;
  const int saved = errno;
  pthread_mutex_lock(&mutex);
  const size_t length = strlen(noted);
  if (length + 64 < kLongest) snprintf(noted + length, 64, "%s(%ld) ", name, detail);
  for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); ++i) {
    if (counts[i].name[0] == 0) snprintf(counts[i].name, sizeof(counts[i].name), "%s", name);
    if (strcmp(counts[i].name, name) == 0) {
      number = ++counts[i].count;
      break;
    }
  }
  memcpy(copy, plan, sizeof(plan));
  pthread_mutex_unlock(&mutex);
  while ((item = strsep(&rest, " ")) != NULL) {
    char* at = strchr(item, '@');
    char* is = strchr(item, '=');
    if (at == NULL || is == NULL) continue;
    *at = *is = 0;
    if (strcmp(item, name) == 0 && (at[1] == '*' || atoi(at + 1) == number)) {
      if (strcmp(is + 1, "kill") == 0) raise(SIGKILL);
      result = strcmp(is + 1, "short") == 0 ? kShort
               : strcmp(is + 1, "odd") == 0 ? kOdd
                                            : atoi(is + 1);
    }
  }
  errno = saved;
  return result;
}

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
#define FAIL_AS_PLANNED(name, detail)    \
  do {                                   \
    const int planned = note(name, detail); \
    if (planned > 0) {                   \
      errno = planned;                   \
      return -1;                         \
    }                                    \
  } while (0)

static long (*ask_kernel)(long number, ...) = NULL;

/* Early, because mmap asks the kernel, and dlsym may need memory itself. */
__attribute__((constructor)) static void find_kernel(void) {
  ask_kernel = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
}

/* The bytes that the planned disk has, or -1. */
static long disk_nbytes(void) {
  const char* item = strstr(plan, "disk@");
  return item == NULL ? -1 : atol(item + 5);
}

static int is_cache_only(void) { return strstr(plan, "cache@*=only") != NULL; }

static ssize_t write_vector(int fd, const struct iovec* pieces, int count, off64_t offset,
                            int flags) {
  ssize_t (*real)(int, const struct iovec*, int, off64_t, int) =
      (ssize_t(*)(int, const struct iovec*, int, off64_t, int))dlsym(RTLD_NEXT, "pwritev64v2");
  const int planned = note("pwritev", (long)offset);
  /* A direct write ends at a block. */
  const size_t block = fcntl(fd, F_GETFL) & O_DIRECT ? kBlock : 1;
  struct iovec first = pieces[0];
  if (is_cache_only() && block > 1) {
    errno = EINVAL;
    return -1;
  }
  if (planned > 0) {
    errno = planned;
    return -1;
  }
  if (planned == kShort && first.iov_len > block) {
    first.iov_len = (first.iov_len / 2 + block - 1) / block * block;
    return real(fd, &first, 1, offset, flags);
  }
  if (planned == kOdd && first.iov_len > kOddNbytes) {
    const ssize_t written = real(fd, &first, 1, offset, flags);
    return written == -1 ? -1 : kOddNbytes;
  }
  if (disk_nbytes() >= 0 && offset + (off64_t)first.iov_len > disk_nbytes()) {
    const off64_t left = disk_nbytes() - offset;
    first.iov_len = left < 0 ? 0 : (size_t)left / block * block;
    if (first.iov_len == 0) {
      errno = ENOSPC;
      return -1;
    }
    return real(fd, &first, 1, offset, flags);
  }
  if (disk_nbytes() >= 0) count = 1;
  return real(fd, pieces, count, offset, flags);
}

ssize_t pwritev(int fd, const struct iovec* pieces, int count, off_t offset) {
  return write_vector(fd, pieces, count, offset, 0);
}

ssize_t pwritev64(int fd, const struct iovec* pieces, int count, off64_t offset) {
  return write_vector(fd, pieces, count, offset, 0);
}

ssize_t pwritev2(int fd, const struct iovec* pieces, int count, off_t offset, int flags) {
  FAIL_AS_PLANNED("dontcache", flags);
  return write_vector(fd, pieces, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec* pieces, int count, off64_t offset, int flags) {
  FAIL_AS_PLANNED("dontcache", flags);
  return write_vector(fd, pieces, count, offset, flags);
}

int statx(int fd, const char* path, int flags, unsigned mask, struct statx* out) {
  if (mask & kDioAlign) FAIL_AS_PLANNED("statx-direct", 0);
  return REAL(int, statx, int, const char*, int, unsigned, struct statx*)(fd, path, flags, mask,
                                                                          out);
}

static int control_file(const char* name, int fd, int command, void* argument) {
  if (command == F_SETFL && ((long)argument & O_DIRECT)) FAIL_AS_PLANNED("fcntl-direct", 0);
  if (command == F_SETFL && is_cache_only() && !((long)argument & O_DIRECT)) usleep(50000);
  return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, name))(fd, command, argument);
}

int fcntl(int fd, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void* argument = va_arg(rest, void*);
  va_end(rest);
  return control_file("fcntl", fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void* argument = va_arg(rest, void*);
  va_end(rest);
  return control_file("fcntl64", fd, command, argument);
}

static void* map(void* address, size_t nbytes, int protection, int flags, int fd, off64_t offset) {
  if (nbytes == kSegmentsNbytes) {
    const int planned = note("mmap", (long)nbytes);
    if (planned > 0) {
      errno = planned;
      return MAP_FAILED;
    }
  }
  /* Not by dlsym, which may need memory itself. */
  return (void*)syscall(SYS_mmap, address, nbytes, protection, flags, fd, offset);
}

void* mmap(void* address, size_t nbytes, int protection, int flags, int fd, off_t offset) {
  return map(address, nbytes, protection, flags, fd, offset);
}

void* mmap64(void* address, size_t nbytes, int protection, int flags, int fd, off64_t offset) {
  return map(address, nbytes, protection, flags, fd, offset);
}

int posix_fadvise(int fd, off_t offset, off_t nbytes, int advice) {
  note("fadvise", advice);
  return REAL(int, posix_fadvise, int, off_t, off_t, int)(fd, offset, nbytes, advice);
}

int posix_fadvise64(int fd, off64_t offset, off64_t nbytes, int advice) {
  note("fadvise", advice);
  return REAL(int, posix_fadvise64, int, off64_t, off64_t, int)(fd, offset, nbytes, advice);
}

int fallocate(int fd, int mode, off_t offset, off_t length) {
  FAIL_AS_PLANNED("fallocate", (long)length);
  return REAL(int, fallocate, int, int, off_t, off_t)(fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  FAIL_AS_PLANNED("fallocate", (long)length);
  return REAL(int, fallocate64, int, int, off64_t, off64_t)(fd, mode, offset, length);
}

int ftruncate(int fd, off_t length) {
  FAIL_AS_PLANNED("ftruncate", (long)length);
  return REAL(int, ftruncate, int, off_t)(fd, length);
}

int ftruncate64(int fd, off64_t length) {
  FAIL_AS_PLANNED("ftruncate", (long)length);
  return REAL(int, ftruncate64, int, off64_t)(fd, length);
}

int fsync(int fd) {
  struct stat status;
  const int is_folder = fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
  FAIL_AS_PLANNED(is_folder ? "fsync-folder" : "fsync", 0);
  return REAL(int, fsync, int)(fd);
}

int syncfs(int fd) {
  FAIL_AS_PLANNED("syncfs", 0);
  return REAL(int, syncfs, int)(fd);
}

int fchmod(int fd, mode_t mode) {
  FAIL_AS_PLANNED("fchmod", (long)mode);
  return REAL(int, fchmod, int, mode_t)(fd, mode);
}

int fchown(int fd, uid_t owner, gid_t group) {
  FAIL_AS_PLANNED("fchown", (long)owner);
  return REAL(int, fchown, int, uid_t, gid_t)(fd, owner, group);
}

int fsetxattr(int fd, const char* name, const void* value, size_t nbytes, int flags) {
  FAIL_AS_PLANNED("fsetxattr", (long)nbytes);
  return REAL(int, fsetxattr, int, const char*, const void*, size_t, int)(fd, name, value, nbytes,
                                                                         flags);
}

int linkat(int from_fd, const char* from, int to_fd, const char* to, int flags) {
  FAIL_AS_PLANNED("linkat", 0);
  return REAL(int, linkat, int, const char*, int, const char*, int)(from_fd, from, to_fd, to,
                                                                   flags);
}

int rename(const char* from, const char* to) {
  FAIL_AS_PLANNED("rename", 0);
  return REAL(int, rename, const char*, const char*)(from, to);
}

/* The core asks the kernel itself for the exchange. A call takes six words at most. */
long syscall(long number, ...) {
  long words[6];
  va_list rest;
  va_start(rest, number);
  for (int i = 0; i < 6; ++i) words[i] = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_renameat2) FAIL_AS_PLANNED("exchange", words[4]);
  if (ask_kernel == NULL) find_kernel();
  return ask_kernel(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}

int unlinkat(int fd, const char* path, int flags) {
  FAIL_AS_PLANNED("unlinkat", (long)flags);
  return REAL(int, unlinkat, int, const char*, int)(fd, path, flags);
}

int flock(int fd, int operation) {
  FAIL_AS_PLANNED("flock", (long)operation);
  return REAL(int, flock, int, int)(fd, operation);
}

static int open_file(const char* name, const char* path, int flags, mode_t mode) {
  if ((flags & O_TMPFILE) == O_TMPFILE) FAIL_AS_PLANNED("open-unnamed", (long)mode);
  if ((flags & O_DIRECTORY) && !(flags & (O_RDWR | O_WRONLY))) FAIL_AS_PLANNED("open-folder", 0);
  return ((int (*)(const char*, int, ...))dlsym(RTLD_NEXT, name))(path, flags, mode);
}

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = va_arg(rest, mode_t);
  va_end(rest);
  return open_file("open", path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = va_arg(rest, mode_t);
  va_end(rest);
  return open_file("open64", path, flags, mode);
}

/* Returns the error, as pthread_create does. */
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) {
  const int planned = note("pthread_create", 0);
  if (planned > 0) return planned;
  return REAL(int, pthread_create, pthread_t*, const pthread_attr_t*, void* (*)(void*),
              void*)(thread, attributes, run, argument);
}
