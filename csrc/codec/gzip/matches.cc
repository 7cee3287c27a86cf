#include "codec/gzip/matches.h"

#include <libdeflate.h>
#include <zlib.h>

#include <new>

#include "base/error.h"
#include "codec/gzip/stored_blocks.h"

namespace pyckpt::gzip {
namespace {

constexpr std::size_t kEmptyBlockNbytes = 5;
constexpr std::size_t kPieceNbytes = std::size_t{64} << 10;

struct StreamEnd {
  std::uint64_t last_block_bit;  // where the last block begins
  std::uint64_t end_bit;         // where it ends
};

// Decodes the stream with zlib, because zlib can stop between blocks and say where they are.
// libdeflate cannot.
StreamEnd FindEnd(Span stream, std::vector<std::uint8_t>* inflated) {
  constexpr int kRawDeflate = -15;  // 32 KiB window, no header
  constexpr int kLastBlock = 64;    // of data_type
  constexpr int kBetweenBlocks = 128;
  constexpr int kUnusedBits = 7;  // how many of the last byte
  inflated->resize(kPieceNbytes);
  z_stream zlib{};
  if (inflateInit2(&zlib, kRawDeflate) != Z_OK) throw std::bad_alloc();
  zlib.next_in = const_cast<Bytef*>(stream.data);  // zlib's field is not const
  zlib.avail_in = static_cast<uInt>(stream.nbytes);
  StreamEnd end{};
  int status = Z_OK;
  do {
    zlib.next_out = inflated->data();
    zlib.avail_out = static_cast<uInt>(inflated->size());
    status = inflate(&zlib, Z_BLOCK);
    if (status == Z_OK && (zlib.data_type & kBetweenBlocks) != 0) {
      end.last_block_bit = end.end_bit;
      end.end_bit = 8 * zlib.total_in - static_cast<unsigned>(zlib.data_type & kUnusedBits);
    }
  } while (status == Z_OK &&
           (zlib.data_type & (kBetweenBlocks | kLastBlock)) != (kBetweenBlocks | kLastBlock));
  inflateEnd(&zlib);
  if (status == Z_MEM_ERROR) throw std::bad_alloc();  // it gets its window late
  if (status != Z_OK) throw Error(ErrorKind::kCodec, "zlib: cannot read libdeflate's stream");
  return end;
}

}  // namespace

MatchWriter::~MatchWriter() { libdeflate_free_compressor(compressor_); }

bool MatchWriter::Write(Span raw, std::size_t most_nbytes, BitWriter* writer) {
  if (compressor_ == nullptr) compressor_ = libdeflate_alloc_compressor(level_);
  if (compressor_ == nullptr) throw std::bad_alloc();
  BitWriter ours = *writer;
  if (!ours.aligned()) WriteEmptyBlock(&ours);
  std::uint8_t* begin = ours.Align();
  const std::size_t nbytes = libdeflate_deflate_compress(compressor_, raw.data, raw.nbytes, begin,
                                                         most_nbytes + kEmptyBlockNbytes);
  if (nbytes == 0) return false;  // there was not enough room
  const StreamEnd end = FindEnd({begin, nbytes}, &inflated_);
  begin[end.last_block_bit / 8] &= static_cast<std::uint8_t>(~(1U << end.last_block_bit % 8));
  *writer = BitWriter(begin + end.end_bit / 8);
  if (end.end_bit % 8 != 0) {
    writer->Put(begin[end.end_bit / 8] & ((1U << end.end_bit % 8) - 1), end.end_bit % 8);
  }
  return true;
}

}  // namespace pyckpt::gzip
