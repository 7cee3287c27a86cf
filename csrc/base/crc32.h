// CRC-32 as zip and gzip use it (polynomial 0xEDB88320, RFC 1952 section 8), and as bzip2 uses it.
#ifndef PYCKPT_BASE_CRC32_H_
#define PYCKPT_BASE_CRC32_H_

#include <cstdint>

#include "base/bytes.h"

namespace pyckpt {

// Continues a checksum. If before is Crc32(A), returns the checksum of A followed by bytes. Without
// before, returns the checksum of bytes. Thread-safe. The kernel is chosen at run time.
std::uint32_t Crc32(Span bytes, std::uint32_t before = 0);

// bzip2's checksum: the same polynomial, with the highest bit of each byte first. Thread-safe.
std::uint32_t Crc32MsbFirst(Span bytes);

// The checksum of A followed by B, from Crc32(A), Crc32(B) and the length of B.
std::uint32_t Crc32Combine(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t nbytes_b);

}  // namespace pyckpt

#endif  // PYCKPT_BASE_CRC32_H_
