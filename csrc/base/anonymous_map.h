// Memory that costs something only where it has been written to: room for a whole
// stream of which perhaps only parts are decoded.
#ifndef PYCKPT_BASE_ANONYMOUS_MAP_H_
#define PYCKPT_BASE_ANONYMOUS_MAP_H_

#include <cstddef>
#include <cstdint>

namespace pyckpt {

// Drops the whole pages inside the bytes at data: they are zeros, or what the
// mapped file has, when next read.
void DropPages(std::uint8_t* data, std::size_t nbytes);

// Asks for huge pages in the bytes at data, which are all going to be written.
void PreferHugePages(std::uint8_t* data, std::size_t nbytes);

class AnonymousMap {
 public:
  AnonymousMap() = default;
  AnonymousMap(const AnonymousMap&) = delete;
  AnonymousMap& operator=(const AnonymousMap&) = delete;
  ~AnonymousMap();

  // Makes room for at least nbytes; contents stay, the address may change.
  // Returns false when the system has no such room.
  bool Grow(std::size_t nbytes);

  std::uint8_t* data() const { return data_; }
  std::size_t capacity() const { return capacity_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_ANONYMOUS_MAP_H_
