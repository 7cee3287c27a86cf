// Address space for a whole stream. A page takes memory only after it is written to. So a stream
// that is decoded in part costs only the memory of that part.
#ifndef PYCKPT_BASE_ANONYMOUS_MAP_H_
#define PYCKPT_BASE_ANONYMOUS_MAP_H_

#include <cstddef>
#include <cstdint>

namespace pyckpt {

// Gives back the memory of all whole pages in [data, data + nbytes). Reading them again gives
// zeros, or the bytes of the mapped file.
void DropPages(std::uint8_t* data, std::size_t nbytes);

// Asks for huge pages in [data, data + nbytes). Call it only if all bytes will be written.
void PreferHugePages(std::uint8_t* data, std::size_t nbytes);

class AnonymousMap {
 public:
  AnonymousMap() = default;
  AnonymousMap(const AnonymousMap&) = delete;
  AnonymousMap& operator=(const AnonymousMap&) = delete;
  ~AnonymousMap();

  // Makes room for at least nbytes. The contents stay; the address may change.
  // Returns false if the system does not have enough address space.
  bool Grow(std::size_t nbytes);

  std::uint8_t* data() const { return data_; }
  std::size_t capacity() const { return capacity_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_ANONYMOUS_MAP_H_
