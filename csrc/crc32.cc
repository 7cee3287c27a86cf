#include "crc32.h"

#include <libdeflate.h>
#include <zlib.h>

namespace pyckpt {

std::uint32_t Crc32(Span bytes) { return libdeflate_crc32(0, bytes.data, bytes.nbytes); }

std::uint32_t Crc32Combine(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t nbytes_b) {
  return static_cast<std::uint32_t>(crc32_combine(crc_a, crc_b, static_cast<z_off_t>(nbytes_b)));
}

}  // namespace pyckpt
