#include "codec/gzip/raw_inflater.h"

#include <libdeflate.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>

#include "base/crc32.h"
#include "base/error.h"

namespace pyckpt::gzip {
namespace {

// An empty stored block, marked as the last one (RFC 1951, section 3.2.4).
constexpr std::array<std::uint8_t, 5> kEmptyLastBlock = {1, 0, 0, 0xFF, 0xFF};
constexpr std::size_t kStepNbytes = std::size_t{512} << 10;

[[noreturn]] void WrongSize(std::uint64_t offset) {
  throw Error::Corrupt("its compressed data has another size than the directory says", offset);
}

}  // namespace

RawInflater::RawInflater() : inflate_(libdeflate_alloc_decompressor()) {
  if (inflate_ == nullptr) throw std::bad_alloc();
}

RawInflater::~RawInflater() { libdeflate_free_decompressor(inflate_); }

void RawInflater::InflateStream(Span code, std::uint64_t offset, std::uint8_t* out,
                                std::size_t nbytes) {
  std::size_t used = 0;
  switch (libdeflate_deflate_decompress_ex(inflate_, code.data, code.nbytes, out, nbytes, &used,
                                           nullptr)) {
    case LIBDEFLATE_SUCCESS:
      if (used != code.nbytes) WrongSize(offset);
      return;
    case LIBDEFLATE_BAD_DATA:
      throw Error::Corrupt("its compressed data is damaged", offset);
    default:
      WrongSize(offset);
  }
}

void RawInflater::InflateChunk(Span code, std::uint64_t offset, std::uint8_t* out,
                               std::size_t nbytes) {
  // libdeflate needs a complete stream.
  const std::size_t whole = code.nbytes + kEmptyLastBlock.size();
  std::uint8_t* copy = buffer_.Reserve(whole);
  std::memcpy(copy, code.data, code.nbytes);
  std::memcpy(copy + code.nbytes, kEmptyLastBlock.data(), kEmptyLastBlock.size());
  InflateStream({copy, whole}, offset, out, nbytes);
}

std::uint32_t RawInflater::Crc(Span code, std::uint64_t offset, std::uint64_t nbytes) {
  std::uint8_t* out = buffer_.Reserve(kStepNbytes);
  std::uint32_t crc = 0;
  try {
    inflater_.Start(code, 0);
    for (std::uint64_t left = nbytes; left != 0;) {
      const std::size_t wanted = std::min<std::uint64_t>(left, kStepNbytes);
      const std::size_t n = inflater_.Inflate(out, wanted);
      crc = Crc32({out, n}, crc);
      if (n < wanted) WrongSize(offset);
      left -= n;
    }
    if (inflater_.Inflate(out, 1) != 0) WrongSize(offset);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCorrupt) throw;
    throw Error::Corrupt(error.what(), offset);
  }
  if (!inflater_.ended() || inflater_.offset() != code.nbytes) WrongSize(offset);
  return crc;
}

}  // namespace pyckpt::gzip
