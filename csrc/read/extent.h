// A range of bytes of the decompressed stream.
#ifndef PYCKPT_READ_EXTENT_H_
#define PYCKPT_READ_EXTENT_H_

#include <cstdint>

namespace pyckpt {

struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t nbytes = 0;

  std::uint64_t end() const { return offset + nbytes; }
};

}  // namespace pyckpt

#endif  // PYCKPT_READ_EXTENT_H_
