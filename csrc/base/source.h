// Bytes that are fetched when they are needed.
#ifndef PYCKPT_BASE_SOURCE_H_
#define PYCKPT_BASE_SOURCE_H_

#include <cstddef>
#include <cstdint>

namespace pyckpt {

// Bytes that are not in this process's memory yet: a file, a device's memory.
class Source {
 public:
  Source() = default;
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  virtual ~Source() = default;

  // Copies [offset, offset + nbytes) to out. Several threads may call it at once. Throws if the
  // bytes cannot be read.
  virtual void Read(std::uint64_t offset, std::size_t nbytes, std::uint8_t* out) = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_SOURCE_H_
