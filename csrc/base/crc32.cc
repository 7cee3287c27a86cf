#include "base/crc32.h"

#include <libdeflate.h>
#include <zlib.h>

#include <algorithm>
#include <array>

namespace pyckpt {
namespace {

std::uint8_t ReverseBits(std::uint8_t byte) {
  byte = static_cast<std::uint8_t>((byte & 0x0F) << 4 | byte >> 4);
  byte = static_cast<std::uint8_t>((byte & 0x33) << 2 | (byte >> 2 & 0x33));
  return static_cast<std::uint8_t>((byte & 0x55) << 1 | (byte >> 1 & 0x55));
}

}  // namespace

std::uint32_t Crc32(Span bytes, std::uint32_t before) {
  // Most of the bytes are not in a cache yet. Each page is fetched while the page before it is
  // summed.
  constexpr std::size_t kPage = 4096;
  constexpr std::size_t kCacheLine = 64;
  std::uint32_t crc = before;
  for (std::size_t at = 0; at < bytes.nbytes; at += kPage) {
    const std::size_t end = std::min(bytes.nbytes, at + kPage);
    const std::size_t fetched = std::min(bytes.nbytes, end + kPage);
    for (std::size_t i = end; i < fetched; i += kCacheLine) __builtin_prefetch(bytes.data + i);
    crc = libdeflate_crc32(crc, bytes.data + at, end - at);
  }
  return crc;
}

std::uint32_t Crc32MsbFirst(Span bytes) {
  // Reverse the bits of each byte in vectors, then use the usual CRC.
  std::array<std::uint8_t, 4096> reversed;
  std::uint32_t crc = 0;
  for (std::size_t at = 0; at < bytes.nbytes;) {
    const std::size_t n = std::min(reversed.size(), bytes.nbytes - at);
    std::transform(bytes.data + at, bytes.data + at + n, reversed.begin(), ReverseBits);
    crc = libdeflate_crc32(crc, reversed.data(), n);
    at += n;
  }
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    out = out << 8 | ReverseBits(static_cast<std::uint8_t>(crc >> (8 * i)));
  }
  return out;
}

std::uint32_t Crc32Combine(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t nbytes_b) {
  return static_cast<std::uint32_t>(crc32_combine(crc_a, crc_b, static_cast<z_off_t>(nbytes_b)));
}

}  // namespace pyckpt
