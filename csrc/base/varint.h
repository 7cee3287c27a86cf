// Whole numbers of any size in few bytes: seven bits per byte, lowest first. The highest bit says
// that more bytes follow.
#ifndef PYCKPT_BASE_VARINT_H_
#define PYCKPT_BASE_VARINT_H_

#include <cstdint>
#include <optional>
#include <string>

namespace pyckpt {

inline void AppendVarint(std::string* out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

// Reads the next varint and advances *at. None if there is no complete one of at most 63 bits
// before end.
inline std::optional<std::uint64_t> ReadVarint(const std::uint8_t** at, const std::uint8_t* end) {
  std::uint64_t value = 0;
  for (unsigned shift = 0; *at != end && shift < 63; shift += 7) {
    const std::uint8_t byte = *(*at)++;
    value |= std::uint64_t{byte & 0x7FU} << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

}  // namespace pyckpt

#endif  // PYCKPT_BASE_VARINT_H_
