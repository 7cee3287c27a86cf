#include "base/crc32.h"

#include <libdeflate.h>
#include <zlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <cstring>

#include "base/cpu.h"

namespace pyckpt {
namespace {

#if defined(__x86_64__)

// GCC warns that attributes of a vector type are ignored when it is a template argument. Here that
// is harmless.
#pragma GCC diagnostic ignored "-Wignored-attributes"

// Carry-less multiplication folds bytes onto bytes that come later: the two have the same checksum
// together. V. Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ".

// What the folding moves 64 bits with: x^exponent mod the polynomial, lowest coefficient in the
// highest of 33 bits.
constexpr std::uint64_t FoldingConstant(int exponent) {
  std::uint32_t power = 0x80000000;  // x^0
  for (int i = 0; i < exponent; ++i) power = power >> 1 ^ ((power & 1) != 0 ? 0xEDB88320 : 0);
  return std::uint64_t{power} << 1;
}
static_assert(FoldingConstant(512 + 32) == 0x154442BD4, "as in the paper");

constexpr std::size_t kVectors = 8;
constexpr std::size_t kFoldedNbytes = kVectors * sizeof(__m256i);
constexpr int kFoldedBits = 8 * static_cast<int>(kFoldedNbytes);

[[gnu::target("avx2")]] inline __m256i Load(const std::uint8_t* bytes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

// As Crc32; nbytes is a multiple of kFoldedNbytes and not 0.
[[gnu::target("vpclmulqdq,pclmul,avx2")]] std::uint32_t FoldedCrc32(const std::uint8_t* bytes,
                                                                    std::size_t nbytes,
                                                                    std::uint32_t before) {
  constexpr std::uint64_t kLow = FoldingConstant(kFoldedBits + 32);
  constexpr std::uint64_t kHigh = FoldingConstant(kFoldedBits - 32);
  const __m256i by = _mm256_set_epi64x(kHigh, kLow, kHigh, kLow);
  std::array<__m256i, kVectors> folded;
  for (std::size_t i = 0; i < kVectors; ++i) folded[i] = Load(bytes + i * sizeof(__m256i));
  // The checksum so far counts as if it were in the first bytes.
  folded[0] = _mm256_xor_si256(
      folded[0], _mm256_zextsi128_si256(_mm_cvtsi32_si128(static_cast<int>(~before))));
  for (std::size_t at = kFoldedNbytes; at < nbytes; at += kFoldedNbytes) {
    for (std::size_t i = 0; i < kVectors; ++i) {
      const __m256i low = _mm256_clmulepi64_epi128(folded[i], by, 0x00);
      const __m256i high = _mm256_clmulepi64_epi128(folded[i], by, 0x11);
      folded[i] =
          _mm256_xor_si256(_mm256_xor_si256(low, high), Load(bytes + at + i * sizeof(__m256i)));
    }
  }
  std::array<std::uint8_t, kFoldedNbytes> last;
  std::memcpy(last.data(), folded.data(), kFoldedNbytes);
  return libdeflate_crc32(~std::uint32_t{0}, last.data(), last.size());
}

#endif  // __x86_64__

// libdeflate's kernel. Most of the bytes are not in a cache yet: each page is fetched while the
// page before it is summed.
std::uint32_t PagedCrc32(Span bytes, std::uint32_t before) {
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

std::uint8_t ReverseBits(std::uint8_t byte) {
  byte = static_cast<std::uint8_t>((byte & 0x0F) << 4 | byte >> 4);
  byte = static_cast<std::uint8_t>((byte & 0x33) << 2 | (byte >> 2 & 0x33));
  return static_cast<std::uint8_t>((byte & 0x55) << 1 | (byte >> 1 & 0x55));
}

}  // namespace

std::uint32_t Crc32(Span bytes, std::uint32_t before) {
#if defined(__x86_64__)
  // Below, the checksum of what is folded takes longer than the folding saves.
  constexpr std::size_t kWorthFolding = 8 * kFoldedNbytes;
  if (bytes.nbytes >= kWorthFolding && UseVpclmul()) {
    const std::size_t folded = bytes.nbytes / kFoldedNbytes * kFoldedNbytes;
    const std::uint32_t crc = FoldedCrc32(bytes.data, folded, before);
    return libdeflate_crc32(crc, bytes.data + folded, bytes.nbytes - folded);
  }
#endif
  return PagedCrc32(bytes, before);
}

std::uint32_t Crc32MsbFirst(Span bytes) {
  // Reverse the bits of each byte in vectors, then use the usual CRC.
  std::array<std::uint8_t, 4096> reversed;
  std::uint32_t crc = 0;
  for (std::size_t at = 0; at < bytes.nbytes;) {
    const std::size_t n = std::min(reversed.size(), bytes.nbytes - at);
    std::transform(bytes.data + at, bytes.data + at + n, reversed.begin(), ReverseBits);
    crc = Crc32({reversed.data(), n}, crc);
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
