#include "codec/gzip/stored_blocks.h"

#include <algorithm>
#include <cstring>

namespace pyckpt::gzip {
namespace {

constexpr std::size_t kStoredLimit = 65535;

}  // namespace

std::uint8_t* WriteEmptyBlock(BitWriter* writer) {
  writer->Put(0, 3);  // stored, not the last
  writer->Align();
  writer->Put(0xFFFF0000, 32);  // the length, 0, and its complement
  return writer->Align();
}

std::size_t StoredBlocksBound(std::size_t raw_nbytes, std::size_t runs) {
  return raw_nbytes + 5 * (raw_nbytes / kStoredLimit + runs) + 1;
}

std::uint8_t* WriteStoredBlocks(Span raw, BitWriter* writer) {
  std::size_t at = 0;
  do {
    const std::size_t n = std::min(kStoredLimit, raw.nbytes - at);
    writer->Put(0, 3);  // stored, not the last
    writer->Align();
    writer->Put(n | (~n & 0xFFFF) << 16, 32);
    std::uint8_t* out = writer->Align();
    if (n != 0) std::memcpy(out, raw.data + at, n);
    *writer = BitWriter(out + n);
    at += n;
  } while (at < raw.nbytes);
  return writer->Align();
}

}  // namespace pyckpt::gzip
