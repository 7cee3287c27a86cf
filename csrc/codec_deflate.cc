#include "codec_deflate.h"

#include <zlib.h>

#include <algorithm>

#include "crc32.h"
#include "deflate_literals.h"
#include "error.h"
#include "probe.h"

namespace pyckpt::deflate {
namespace {

// Literals have to save this share of a chunk before they are worth decoding.
constexpr std::size_t kWorthwhile = 500;  // one part in

class DeflateEncoder final : public ContiguousEncoder {
 public:
  explicit DeflateEncoder(int level) : level_(level) {}
  DeflateEncoder(const DeflateEncoder&) = delete;
  DeflateEncoder& operator=(const DeflateEncoder&) = delete;
  ~DeflateEncoder() override {
    if (zlib_ready_) deflateEnd(&zlib_);
  }

 protected:
  void EncodeBytes(Span raw, std::uint32_t /*element_nbytes*/, EncodedChunk* out) override {
    out->check = Crc32(raw);
    if (level_ == 0) return Store(raw, out);
    const LiteralCode code(SampleHistogram(raw));
    const std::uint64_t literal_nbytes = code.EstimateNbytes(raw.nbytes);
    if (HasRepeats(raw)) {
      FindMatches(raw, out);
      if (out->nbytes <= literal_nbytes) return;
    }
    if (literal_nbytes + raw.nbytes / kWorthwhile >= raw.nbytes) return Store(raw, out);
    std::uint8_t* begin = out->buffer.Reserve(LiteralBlockBound(raw.nbytes));
    out->UseBuffer(static_cast<std::size_t>(WriteLiteralBlock(raw, code, begin) - begin));
    // The sample can be wrong about the whole.
    if (out->nbytes > StoredBlocksNbytes(raw.nbytes)) Store(raw, out);
  }

 private:
  static void Store(Span raw, EncodedChunk* out) {
    std::uint8_t* begin = out->buffer.Reserve(StoredBlocksNbytes(raw.nbytes));
    out->UseBuffer(static_cast<std::size_t>(WriteStoredBlocks(raw, begin) - begin));
  }

  void FindMatches(Span raw, EncodedChunk* out) {
    constexpr int kRawDeflate = -15;  // 32 KiB window, no header
    constexpr int kMemory = 9;
    const int status = zlib_ready_ ? deflateReset(&zlib_)
                                   : deflateInit2(&zlib_, level_, Z_DEFLATED, kRawDeflate, kMemory,
                                                  Z_DEFAULT_STRATEGY);
    if (status != Z_OK) throw Error(ErrorKind::kCodec, "zlib: cannot start a deflate stream");
    zlib_ready_ = true;
    constexpr std::size_t kFlushNbytes = 16;
    const std::size_t bound = deflateBound(&zlib_, raw.nbytes) + kFlushNbytes;
    zlib_.next_in = const_cast<Bytef*>(raw.data);  // zlib's field lacks the const
    zlib_.avail_in = static_cast<uInt>(raw.nbytes);
    zlib_.next_out = out->buffer.Reserve(bound);
    zlib_.avail_out = static_cast<uInt>(bound);
    // The flush ends the chunk with the same empty stored block.
    if (::deflate(&zlib_, Z_SYNC_FLUSH) != Z_OK || zlib_.avail_in != 0 || zlib_.avail_out == 0) {
      throw Error(ErrorKind::kCodec, "zlib: a chunk did not fit its bound");
    }
    out->UseBuffer(bound - zlib_.avail_out);
  }

  int level_;
  z_stream zlib_{};
  bool zlib_ready_ = false;
};

class GzipJoiner final : public StreamJoiner {
 public:
  std::string Begin() override {
    constexpr char kDeflate = 8;
    constexpr char kUnix = 3;
    // No flags, no time stamp: equal states give equal files.
    return {'\x1F', '\x8B', kDeflate, 0, 0, 0, 0, 0, 0, kUnix};
  }

  void Append(EncodedChunk* chunk) override {
    crc_ = nbytes_ == 0 ? chunk->check : Crc32Combine(crc_, chunk->check, chunk->raw_nbytes);
    nbytes_ += chunk->raw_nbytes;
  }

  std::string End() override {
    std::string out = {'\x03', '\x00'};  // the last block: fixed code, empty
    AppendLe32(&out, crc_);
    AppendLe32(&out, static_cast<std::uint32_t>(nbytes_));
    return out;
  }

 private:
  std::uint32_t crc_ = 0;
  std::uint64_t nbytes_ = 0;
};

}  // namespace

std::unique_ptr<ChunkEncoder> GzipCodec::NewEncoder(int level) const {
  return std::make_unique<DeflateEncoder>(level);
}

std::unique_ptr<StreamJoiner> GzipCodec::NewJoiner() const {
  return std::make_unique<GzipJoiner>();
}

}  // namespace pyckpt::deflate
