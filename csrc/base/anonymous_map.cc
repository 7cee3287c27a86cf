#include "base/anonymous_map.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/bytes.h"

namespace pyckpt {
namespace {

std::size_t PageNbytes() {
  static const auto kNbytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return kNbytes;
}

// The whole pages inside the bytes at data.
bool WholePages(std::uint8_t** data, std::size_t* nbytes) {
  const std::size_t before = PaddingTo(reinterpret_cast<std::uintptr_t>(*data), PageNbytes());
  if (*nbytes < before + PageNbytes()) return false;
  *data += before;
  *nbytes = (*nbytes - before) / PageNbytes() * PageNbytes();
  return true;
}

}  // namespace

void DropPages(std::uint8_t* data, std::size_t nbytes) {
  if (WholePages(&data, &nbytes)) madvise(data, nbytes, MADV_DONTNEED);
}

void PreferHugePages(std::uint8_t* data, std::size_t nbytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::size_t kWorthwhile = std::size_t{4} << 20;
  if (nbytes >= kWorthwhile && WholePages(&data, &nbytes)) madvise(data, nbytes, MADV_HUGEPAGE);
#else
  (void)data;
  (void)nbytes;
#endif
}

AnonymousMap::~AnonymousMap() {
  if (data_ != nullptr) munmap(data_, capacity_);
}

bool AnonymousMap::Grow(std::size_t nbytes) {
  if (nbytes <= capacity_) return true;
  if (nbytes > SIZE_MAX / 4) return false;
  nbytes = (nbytes + PageNbytes() - 1) / PageNbytes() * PageNbytes();
  void* address = MAP_FAILED;
#ifdef MREMAP_MAYMOVE
  if (data_ != nullptr) {
    address = mremap(data_, capacity_, nbytes, MREMAP_MAYMOVE);
    if (address == MAP_FAILED) return false;
    data_ = static_cast<std::uint8_t*>(address);
    capacity_ = nbytes;
    return true;
  }
#endif
  address = mmap(nullptr, nbytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return false;
  auto* moved = static_cast<std::uint8_t*>(address);
  if (data_ != nullptr) {
    std::memcpy(moved, data_, capacity_);
    munmap(data_, capacity_);
  }
  data_ = moved;
  capacity_ = nbytes;
  return true;
}

}  // namespace pyckpt
