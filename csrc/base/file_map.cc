#include "base/file_map.h"

#include <sys/mman.h>

#include <cerrno>

#include "base/error.h"

namespace pyckpt {

FileMap::FileMap(const OpenFile& file, Writes writes) : supply_(file.supply()) {
  if (file.nbytes() == 0) return;
  const int protection = PROT_READ | (writes == Writes::kToCopy ? PROT_WRITE : 0);
  void* address =
      mmap(nullptr, file.nbytes(), protection, MAP_PRIVATE | MAP_NORESERVE, file.fd(), 0);
  if (address == MAP_FAILED) throw Error::System(errno, "cannot read", file.path());
  data_ = static_cast<std::uint8_t*>(address);
  nbytes_ = file.nbytes();
}

FileMap::~FileMap() {
  if (data_ != nullptr) munmap(data_, nbytes_);
}

}  // namespace pyckpt
