/* Which library some code is in: pyckpt's core, libstdc++, Python, or another one. */
#ifndef PYCKPT_FAULTS_LIBRARIES_H_
#define PYCKPT_FAULTS_LIBRARIES_H_

#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum library { kOther, kCore, kRuntime, kPython };
enum { kMostRanges = 64 };

static struct { uintptr_t begin, end; enum library library; } ranges[kMostRanges];
static int range_count;

static enum library library_named(const char* path) {
  if (strstr(path, "/_core.") != NULL) return kCore;
  if (strstr(path, "/libstdc++") != NULL) return kRuntime;
  if (strstr(path, "/libpython") != NULL || path[0] == 0) return kPython; /* the program itself */
  return kOther;
}

static int add_range(struct dl_phdr_info* info, size_t size, void* data) {
  (void)size;
  (void)data;
  const enum library library = library_named(info->dlpi_name);
  for (int i = 0; i < info->dlpi_phnum && range_count < kMostRanges; ++i) {
    const ElfW(Phdr)* part = &info->dlpi_phdr[i];
    if (library == kOther || part->p_type != PT_LOAD || !(part->p_flags & PF_X)) continue;
    ranges[range_count].begin = info->dlpi_addr + part->p_vaddr;
    ranges[range_count].end = info->dlpi_addr + part->p_vaddr + part->p_memsz;
    ranges[range_count++].library = library;
  }
  return 0;
}

/* Finds where the libraries are. Call it once the core is loaded. */
void fault_find_libraries(void) {
  range_count = 0;
  dl_iterate_phdr(add_range, NULL);
}

static enum library library_at(uintptr_t address) {
  for (int i = 0; i < range_count; ++i) {
    if (address >= ranges[i].begin && address < ranges[i].end) return ranges[i].library;
  }
  return kOther;
}

#endif
