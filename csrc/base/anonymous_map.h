// Address space for a whole stream. Only pages that are written to take memory, so a stream
// of which parts are decoded costs those parts.
#ifndef PYCKPT_BASE_ANONYMOUS_MAP_H_
#define PYCKPT_BASE_ANONYMOUS_MAP_H_

#include <cstddef>
#include <cstdint>

namespace pyckpt {

// Gives back the memory of all whole pages in [data, data + nbytes). When read again, they are
// zeros, or the bytes of the mapped file.
void DropPages(std::uint8_t* data, std::size_t nbytes);

// Asks for huge pages in [data, data + nbytes). Call it where all bytes will be written.
void PreferHugePages(std::uint8_t* data, std::size_t nbytes);

class AnonymousMap {
 public:
  AnonymousMap() = default;
  AnonymousMap(const AnonymousMap&) = delete;
  AnonymousMap& operator=(const AnonymousMap&) = delete;
  ~AnonymousMap();

  // Makes room for at least nbytes. The contents stay; the address may change.
  // Returns false when the system has not so much address space.
  bool Grow(std::size_t nbytes);

  std::uint8_t* data() const { return data_; }
  std::size_t capacity() const { return capacity_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_ANONYMOUS_MAP_H_
