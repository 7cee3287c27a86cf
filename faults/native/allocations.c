/* Lets one allocation, mapping or start of a thread of pyckpt's core fail: see seam.h.
 *
 * An allocation is the core's if the code that asks for it is in the core, or in libstdc++ on
 * behalf of the core. Those of Python's interpreter are a kind of their own. Those of torch and of
 * libc do not count.
 */
#define _GNU_SOURCE
#define KINDS X(core) X(map) X(thread) X(python)
#include "seam.h"

#include "libraries.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unwind.h>

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

enum { kMostFrames = 32 };

struct walk {
  enum library found;
  int frames;
};

/* Goes on until a frame is neither this library's nor libstdc++'s. */
static _Unwind_Reason_Code step(struct _Unwind_Context* context, void* data) {
  struct walk* walk = data;
  const enum library library = library_at(_Unwind_GetIP(context));
  if (library == kRuntime) walk->found = kRuntime;
  if (library == kRuntime || walk->found != kRuntime) {
    return ++walk->frames < kMostFrames ? _URC_NO_REASON : _URC_END_OF_STACK;
  }
  walk->found = library;
  return _URC_END_OF_STACK;
}

static enum library caller(void* address) {
  enum library library = library_at((uintptr_t)address);
  if (library != kRuntime) return library;
  struct walk walk = {kOther, 0};
  _Unwind_Backtrace(step, &walk);
  return walk.found;
}

static _Thread_local int walking; /* unwinding may allocate */

static int fails(void* address) {
  if (!atomic_load_explicit(&counting, memory_order_relaxed) || walking) return 0;
  walking = 1;
  const enum library library = caller(address);
  walking = 0;
  if (library != kCore && library != kPython) return 0;
  if (planned(library == kCore ? k_core : k_python) == 0) return 0;
  errno = ENOMEM;
  return 1;
}

#define CALLER __builtin_return_address(0)

void* malloc(size_t size) { return fails(CALLER) ? NULL : __libc_malloc(size); }
void* calloc(size_t n, size_t size) { return fails(CALLER) ? NULL : __libc_calloc(n, size); }
void* realloc(void* old, size_t size) {
  return fails(CALLER) ? NULL : __libc_realloc(old, size);
}
void* memalign(size_t alignment, size_t size) {
  return fails(CALLER) ? NULL : __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  return fails(CALLER) ? NULL : __libc_memalign(alignment, size);
}
int posix_memalign(void** out, size_t alignment, size_t size) {
  if (fails(CALLER)) return ENOMEM;
  void* memory = __libc_memalign(alignment, size);
  if (memory == NULL) return ENOMEM;
  *out = memory;
  return 0;
}

static int map_fails(void* address) {
  if (!atomic_load(&counting) || library_at((uintptr_t)address) != kCore) return 0;
  if (planned(k_map) == 0) return 0;
  errno = ENOMEM;
  return 1;
}

#define REAL(type, name, parameters) ((type(*) parameters)dlsym(RTLD_NEXT, #name))

void* mmap(void* address, size_t size, int protection, int flags, int fd, off_t at) {
  if (map_fails(CALLER)) return MAP_FAILED;
  return REAL(void*, mmap, (void*, size_t, int, int, int, off_t))(address, size, protection, flags,
                                                                  fd, at);
}

void* mmap64(void* address, size_t size, int protection, int flags, int fd, off64_t at) {
  if (map_fails(CALLER)) return MAP_FAILED;
  return REAL(void*, mmap64, (void*, size_t, int, int, int, off64_t))(address, size, protection,
                                                                      flags, fd, at);
}

void* mremap(void* address, size_t size, size_t new_size, int flags, ...) {
  if (map_fails(CALLER)) return MAP_FAILED;
  return REAL(void*, mremap, (void*, size_t, size_t, int, ...))(address, size, new_size, flags);
}

/* Threads of the core are made by libstdc++. Those of Python, which a save starts, count as well. */
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) {
  if (planned(k_thread) != 0) return EAGAIN;
  return REAL(int, pthread_create, (pthread_t*, const pthread_attr_t*, void* (*)(void*), void*))(
      thread, attributes, run, argument);
}
