// Bytes in memory, and loads and stores in little and big endian.
#ifndef PYCKPT_BASE_BYTES_H_
#define PYCKPT_BASE_BYTES_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>

namespace pyckpt {

// Borrowed bytes. Whoever hands out a span says how long it stays valid.
struct Span {
  const std::uint8_t* data = nullptr;
  std::size_t nbytes = 0;
};

inline Span AsSpan(const std::string& bytes) {
  return {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
}

// A reusable byte buffer. It grows when needed and never shrinks, so a worker seldom allocates
// after its first chunk. New memory is not touched until it is written.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() = default;

  // Makes room for nbytes and returns the start, which may have moved. Old contents stay. New bytes
  // are unspecified.
  std::uint8_t* Reserve(std::size_t nbytes) {
    if (nbytes > capacity_) {
      void* grown = std::realloc(bytes_.get(), nbytes);
      if (grown == nullptr) throw std::bad_alloc();
      static_cast<void>(bytes_.release());
      bytes_.reset(static_cast<std::uint8_t*>(grown));
      capacity_ = nbytes;
    }
    return bytes_.get();
  }
  std::uint8_t* data() { return bytes_.get(); }

 private:
  struct Free {
    void operator()(std::uint8_t* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<std::uint8_t, Free> bytes_;
  std::size_t capacity_ = 0;
};

inline void AppendLe(std::string* out, std::uint64_t value, int nbytes) {
  for (int i = 0; i < nbytes; ++i) {
    out->push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  }
}
inline void AppendLe16(std::string* out, std::uint16_t v) { AppendLe(out, v, 2); }
inline void AppendLe32(std::string* out, std::uint32_t v) { AppendLe(out, v, 4); }
inline void AppendLe64(std::string* out, std::uint64_t v) { AppendLe(out, v, 8); }

inline std::uint64_t LoadLe64(const std::uint8_t* p) {
  std::uint64_t word = 0;
  std::memcpy(&word, p, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}
inline std::uint32_t LoadLe32(const std::uint8_t* p) {
  std::uint32_t word = 0;
  std::memcpy(&word, p, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap32(word);
#endif
  return word;
}
inline std::uint64_t LoadBe64(const std::uint8_t* p) { return __builtin_bswap64(LoadLe64(p)); }
inline void StoreLe64(std::uint8_t* p, std::uint64_t word) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  std::memcpy(p, &word, sizeof word);
}

// The distance from offset up to the next multiple of alignment.
inline std::uint64_t PaddingTo(std::uint64_t offset, std::uint64_t alignment) {
  return (alignment - offset % alignment) % alignment;
}

// Whether all bytes from begin on are zero.
inline bool IsZero(Span span, std::uint64_t begin) {
  return std::all_of(span.data + begin, span.data + span.nbytes,
                     [](std::uint8_t byte) { return byte == 0; });
}

}  // namespace pyckpt

#endif  // PYCKPT_BASE_BYTES_H_
