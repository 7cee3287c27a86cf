#include "codec/xz/block_decoder.h"

#include <lzma.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>

#include "base/error.h"

namespace pyckpt::xz {
namespace {

// The filters in a block header. liblzma allocates their options with malloc().
struct Filters {
  Filters() { chain.fill({LZMA_VLI_UNKNOWN, nullptr}); }
  Filters(const Filters&) = delete;
  Filters& operator=(const Filters&) = delete;
  ~Filters() {
    for (const lzma_filter& filter : chain) std::free(filter.options);
  }

  std::array<lzma_filter, LZMA_FILTERS_MAX + 1> chain{};
};

// A block refers only to itself, so the dictionary need not be larger than the block.
void LimitDictionary(std::uint64_t raw_nbytes, Filters* filters) {
  for (const lzma_filter& filter : filters->chain) {
    if (filter.id != LZMA_FILTER_LZMA2) continue;
    auto* options = static_cast<lzma_options_lzma*>(filter.options);
    const std::uint64_t enough = std::max<std::uint64_t>(raw_nbytes, LZMA_DICT_SIZE_MIN);
    options->dict_size =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(options->dict_size, enough));
  }
}

}  // namespace

DecodedBlock XzBlockDecoder::Decode(Span file, const CodeBlock& block, std::uint8_t* out,
                                    std::size_t capacity) {
  if (capacity < block.raw_nbytes) {
    throw Error(ErrorKind::kArgument, "xz: a block needs more room");
  }
  const std::uint64_t begin = block.code_bit / 8;
  const std::uint64_t unpadded = block.code_nbits / 8;
  const std::uint64_t nbytes = unpadded + PaddingTo(unpadded, 4);
  Filters filters;
  lzma_block header{};
  header.version = 1;
  header.check = CheckAt(begin);
  header.filters = filters.chain.data();
  const std::uint8_t size_byte = file.data[begin];
  header.header_size = lzma_block_header_size_decode(size_byte);
  if (size_byte == 0 || header.header_size >= unpadded) {
    throw Error::Corrupt("xz: no block begins where the index says", begin);
  }
  RequireDecoded(lzma_block_header_decode(&header, nullptr, file.data + begin), "a block header",
                 begin);
  RequireDecoded(lzma_block_compressed_size(&header, unpadded), "a block header", begin);
  if (header.uncompressed_size != LZMA_VLI_UNKNOWN &&
      header.uncompressed_size != block.raw_nbytes) {
    throw Error::Corrupt("xz: a block's size does not match the index", begin);
  }
  header.uncompressed_size = block.raw_nbytes;
  const DecodedBlock decoded{static_cast<std::size_t>(block.raw_nbytes), (begin + nbytes) * 8, 0};
  if (DecodeLiterals(file, begin, header, out)) return decoded;
  LimitDictionary(block.raw_nbytes, &filters);
  lzma_stream& coder = coder_.stream;
  RequireDecoded(lzma_block_decoder(&coder, &header), "a block header", begin);
  coder.next_in = file.data + begin + header.header_size;
  coder.avail_in = nbytes - header.header_size;
  coder.next_out = out;
  coder.avail_out = block.raw_nbytes;
  lzma_ret status = LZMA_OK;
  while (status == LZMA_OK) status = lzma_code(&coder, LZMA_FINISH);
  RequireDecoded(status, "a block", begin);
  if (coder.avail_in != 0 || coder.avail_out != 0) {
    throw Error::Corrupt("xz: a block's size does not match the index", begin);
  }
  return decoded;
}

lzma_check XzBlockDecoder::CheckAt(std::uint64_t begin) const {
  const auto after = std::upper_bound(
      checks_->begin(), checks_->end(), begin,
      [](std::uint64_t at, const StreamCheck& stream) { return at < stream.begin; });
  return std::prev(after)->check;
}

bool XzBlockDecoder::DecodeLiterals(Span file, std::uint64_t begin, const lzma_block& header,
                                    std::uint8_t* out) {
  const lzma_filter* chain = header.filters;
  if (chain[0].id != LZMA_FILTER_LZMA2 || chain[1].id != LZMA_VLI_UNKNOWN ||
      static_cast<const lzma_options_lzma*>(chain[0].options)->dict_size != LZMA_DICT_SIZE_MIN) {
    return false;
  }
  const std::uint64_t at = begin + header.header_size;
  const std::size_t code_nbytes = header.compressed_size;
  const std::uint64_t padding = PaddingTo(code_nbytes, 4);
  const std::uint8_t* code = file.data + at;
  const std::uint8_t* check = code + code_nbytes + padding;
  // Decode() has checked that the block is inside the file. The decoder needs some bytes after the
  // code too.
  if (file.nbytes - at - code_nbytes < Lzma2LiteralDecoder::kSlackNbytes) return false;
  if (std::any_of(code + code_nbytes, check, [](std::uint8_t byte) { return byte != 0; }) ||
      !literals_.Decode({code, code_nbytes}, out, header.uncompressed_size)) {
    return false;
  }
  const std::size_t nbytes = header.uncompressed_size;
  if (header.check == LZMA_CHECK_CRC32) return LoadLe32(check) == lzma_crc32(out, nbytes, 0);
  return header.check == LZMA_CHECK_CRC64 && LoadLe64(check) == lzma_crc64(out, nbytes, 0);
}

}  // namespace pyckpt::xz
