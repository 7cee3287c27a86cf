#include "codec/gzip/raw_inflater.h"

#include <algorithm>
#include <cstring>

#include "base/crc32.h"
#include "base/error.h"
#include "codec/gzip/format.h"

namespace pyckpt::gzip {

Inflated RawInflater::InflateStream(Span code, std::uint8_t* out, std::size_t nbytes) {
  std::size_t used = 0;
  switch (libdeflate_deflate_decompress_ex(libdeflate_.get(), code.data, code.nbytes, out, nbytes,
                                           &used, nullptr)) {
    case LIBDEFLATE_SUCCESS:
      return used == code.nbytes ? Inflated::kWhole : Inflated::kOfOtherSize;
    case LIBDEFLATE_BAD_DATA:
      return Inflated::kDamaged;
    default:
      return Inflated::kOfOtherSize;
  }
}

Inflated RawInflater::InflateChunk(Span code, std::uint8_t* out, std::size_t nbytes) {
  // libdeflate needs a complete stream.
  const std::size_t whole = code.nbytes + kEmptyLastBlock.size();
  std::uint8_t* copy = buffer_.Reserve(whole);
  std::memcpy(copy, code.data, code.nbytes);
  std::memcpy(copy + code.nbytes, kEmptyLastBlock.data(), kEmptyLastBlock.size());
  return InflateStream({copy, whole}, out, nbytes);
}

Inflated RawInflater::InflateToCrc(Span code, std::uint64_t nbytes, std::uint32_t* crc) {
  constexpr std::size_t kStepNbytes = std::size_t{512} << 10;
  std::uint8_t* out = buffer_.Reserve(kStepNbytes);
  *crc = 0;
  try {
    inflater_.Start(code, 0);
    for (std::uint64_t left = nbytes; left != 0;) {
      const std::size_t wanted = std::min<std::uint64_t>(left, kStepNbytes);
      const std::size_t n = inflater_.Inflate(out, wanted);
      *crc = Crc32({out, n}, *crc);
      if (n < wanted) return Inflated::kOfOtherSize;
      left -= n;
    }
    if (inflater_.Inflate(out, 1) != 0) return Inflated::kOfOtherSize;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCorrupt) throw;
    return Inflated::kDamaged;
  }
  const bool is_whole = inflater_.ended() && inflater_.offset() == code.nbytes;
  return is_whole ? Inflated::kWhole : Inflated::kOfOtherSize;
}

}  // namespace pyckpt::gzip
