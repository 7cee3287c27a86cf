#include "codec/xz/decoder.h"

#include <lzma.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "codec/xz/literal_decoder.h"

namespace pyckpt::xz {
namespace {

// No code of LZMA stands for more: 273 bytes take fourteen decisions of .022 bits.
constexpr std::uint64_t kMostExpansion = 8192;
// For the largest dictionary that xz writes, 1.5 GiB.
constexpr std::uint64_t kMostMemoryNbytes = std::uint64_t{1600} << 20;
constexpr std::array<std::uint8_t, 6> kMagic = {0xFD, '7', 'z', 'X', 'Z', 0};

void Require(lzma_ret status, const char* what, std::uint64_t offset) {
  switch (status) {
    case LZMA_OK:
    case LZMA_STREAM_END:
      return;
    case LZMA_MEM_ERROR:
      throw std::bad_alloc();
    case LZMA_MEMLIMIT_ERROR:
      throw Error::Corrupt(std::string("xz: ") + what + " asks for too much memory", offset);
    case LZMA_OPTIONS_ERROR:
    case LZMA_UNSUPPORTED_CHECK:
      throw Error::Corrupt(std::string("xz: ") + what + " is of an unknown kind", offset);
    case LZMA_BUF_ERROR:
      throw Error::Corrupt(std::string("xz: ") + what + " is cut off", offset);
    default:
      throw Error::Corrupt(std::string("xz: ") + what + " is damaged", offset);
  }
}

// A liblzma coder, whose memory serves one block after the other.
struct Coder {
  Coder() = default;
  Coder(const Coder&) = delete;
  Coder& operator=(const Coder&) = delete;
  ~Coder() { lzma_end(&stream); }

  lzma_stream stream = LZMA_STREAM_INIT;
};

// What a block header says of filters; liblzma allocates their options.
struct Filters {
  Filters() { chain.fill({LZMA_VLI_UNKNOWN, nullptr}); }
  Filters(const Filters&) = delete;
  Filters& operator=(const Filters&) = delete;
  ~Filters() {
    for (const lzma_filter& filter : chain) std::free(filter.options);
  }

  std::array<lzma_filter, LZMA_FILTERS_MAX + 1> chain{};
};

class XzBlockDecoder final : public BlockDecoder {
 public:
  DecodedBlock Decode(Span file, const CodeBlock& block, std::uint8_t* out,
                      std::size_t capacity) override {
    if (capacity < block.raw_nbytes) {
      throw Error(ErrorKind::kArgument, "xz: a block needs more room");
    }
    const std::uint64_t begin = block.code_bit / 8;
    const std::uint64_t unpadded = block.code_nbits / 8;
    const std::uint64_t nbytes = unpadded + PaddingTo(unpadded, 4);
    Filters filters;
    lzma_block header{};
    header.version = 1;
    header.check = static_cast<lzma_check>(block.check_type);
    header.filters = filters.chain.data();
    const std::uint8_t size_byte = file.data[begin];
    header.header_size = lzma_block_header_size_decode(size_byte);
    if (size_byte == 0 || header.header_size >= unpadded) {
      throw Error::Corrupt("xz: no block begins where the index says", begin);
    }
    Require(lzma_block_header_decode(&header, nullptr, file.data + begin), "a block header", begin);
    Require(lzma_block_compressed_size(&header, unpadded), "a block header", begin);
    if (header.uncompressed_size != LZMA_VLI_UNKNOWN &&
        header.uncompressed_size != block.raw_nbytes) {
      throw Error::Corrupt("xz: a block's size is not what the index says", begin);
    }
    header.uncompressed_size = block.raw_nbytes;
    const DecodedBlock decoded{static_cast<std::size_t>(block.raw_nbytes), (begin + nbytes) * 8, 0};
    if (DecodeLiterals(file, begin, header, out)) return decoded;
    LimitDictionary(block.raw_nbytes, &filters);
    lzma_stream& coder = coder_.stream;
    Require(lzma_block_decoder(&coder, &header), "a block header", begin);
    coder.next_in = file.data + begin + header.header_size;
    coder.avail_in = nbytes - header.header_size;
    coder.next_out = out;
    coder.avail_out = block.raw_nbytes;
    lzma_ret status = LZMA_OK;
    while (status == LZMA_OK) status = lzma_code(&coder, LZMA_FINISH);
    Require(status, "a block", begin);
    if (coder.avail_in != 0 || coder.avail_out != 0) {
      throw Error::Corrupt("xz: a block's size is not what the index says", begin);
    }
    return decoded;
  }

 private:
  // Our own way, for blocks of floats. False if the block is none of those, or if
  // anything about it is wrong.
  bool DecodeLiterals(Span file, std::uint64_t begin, const lzma_block& header, std::uint8_t* out) {
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
    // What Decode() has made sure of is that the block is inside the file.
    if (file.nbytes - at - code_nbytes < Lzma2LiteralDecoder::kSlackNbytes) return false;
    if (std::any_of(code + code_nbytes, check, [](std::uint8_t byte) { return byte != 0; }) ||
        !literals_.Decode({code, code_nbytes}, out, header.uncompressed_size)) {
      return false;
    }
    const std::size_t nbytes = header.uncompressed_size;
    if (header.check == LZMA_CHECK_CRC32) return LoadLe32(check) == lzma_crc32(out, nbytes, 0);
    return header.check == LZMA_CHECK_CRC64 && LoadLe64(check) == lzma_crc64(out, nbytes, 0);
  }

  // A block refers to nothing before it, so a dictionary need not be larger.
  static void LimitDictionary(std::uint64_t raw_nbytes, Filters* filters) {
    for (const lzma_filter& filter : filters->chain) {
      if (filter.id != LZMA_FILTER_LZMA2) continue;
      auto* options = static_cast<lzma_options_lzma*>(filter.options);
      const std::uint64_t enough = std::max<std::uint64_t>(raw_nbytes, LZMA_DICT_SIZE_MIN);
      options->dict_size =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(options->dict_size, enough));
    }
  }

  Coder coder_;
  Lzma2LiteralDecoder literals_;
};

// Blocks check themselves, and the index was compared with the file when it was
// opened.
class XzChecker final : public StreamChecker {
 public:
  void Append(const CodeBlock& /*block*/, const DecodedBlock& /*decoded*/) override {}
  void End() override {}
};

class XzStreams final : public BlockStream {
 public:
  explicit XzStreams(std::vector<CodeBlock> blocks) : blocks_(std::move(blocks)) {}

  const std::vector<CodeBlock>& blocks() const override { return blocks_; }
  std::unique_ptr<BlockDecoder> NewDecoder() const override {
    return std::make_unique<XzBlockDecoder>();
  }
  std::unique_ptr<StreamChecker> NewChecker() const override {
    return std::make_unique<XzChecker>();
  }

 private:
  std::vector<CodeBlock> blocks_;
};

using Index = std::unique_ptr<lzma_index, void (*)(lzma_index*)>;

// The index that ends at *end, where the stream's footer begins, which says its size.
Index ReadIndex(Span file, std::uint64_t begin, std::uint64_t end) {
  lzma_index* index = nullptr;
  // An entry takes at least two bytes in the file; it may claim any number of them.
  std::uint64_t memory = lzma_index_memusage(1, (end - begin) / 2);
  std::size_t at = begin;
  Require(lzma_index_buffer_decode(&index, &memory, nullptr, file.data, &at, end), "an index",
          begin);
  Index owner(index, [](lzma_index* owned) { lzma_index_end(owned, nullptr); });
  if (at != end) throw Error::Corrupt("xz: an index is shorter than its footer says", begin);
  return owner;
}

// Adds the blocks of the stream that ends at end, last block first, and returns
// where the stream begins.
std::uint64_t ReadStream(Span file, std::uint64_t end, std::vector<CodeBlock>* blocks) {
  constexpr std::uint64_t kFrame = LZMA_STREAM_HEADER_SIZE;  // the footer's size too
  if (end < 2 * kFrame) throw Error::Corrupt("xz: the file is cut off", end);
  lzma_stream_flags footer{};
  Require(lzma_stream_footer_decode(&footer, file.data + end - kFrame), "a stream's footer",
          end - kFrame);
  if (lzma_check_is_supported(footer.check) == 0) {
    throw Error::Corrupt("xz: checks of an unknown kind", end - kFrame);
  }
  if (footer.backward_size > end - 2 * kFrame) {
    throw Error::Corrupt("xz: a stream's footer is damaged", end - kFrame);
  }
  const std::uint64_t index_begin = end - kFrame - footer.backward_size;
  const Index index = ReadIndex(file, index_begin, end - kFrame);
  const std::uint64_t blocks_nbytes = lzma_index_total_size(index.get());
  if (blocks_nbytes > index_begin - kFrame) {
    throw Error::Corrupt("xz: an index lists more than there is", index_begin);
  }
  const std::uint64_t begin = index_begin - blocks_nbytes - kFrame;
  lzma_stream_flags header{};
  Require(lzma_stream_header_decode(&header, file.data + begin), "a stream's header", begin);
  Require(lzma_stream_flags_compare(&header, &footer), "a stream's header", begin);

  const std::size_t before = blocks->size();
  lzma_index_iter iter;
  lzma_index_iter_init(&iter, index.get());
  while (lzma_index_iter_next(&iter, LZMA_INDEX_ITER_BLOCK) == 0) {
    CodeBlock block;
    block.code_bit = (begin + iter.block.compressed_stream_offset) * 8;
    block.code_nbits = iter.block.unpadded_size * 8;
    block.raw_nbytes = iter.block.uncompressed_size;
    block.check_type = static_cast<int>(footer.check);
    if (block.raw_nbytes > iter.block.unpadded_size * kMostExpansion) {
      throw Error::Corrupt("xz: an index lists a block of more bytes than its code can hold",
                           index_begin);
    }
    blocks->push_back(block);
  }
  std::reverse(blocks->begin() + static_cast<std::ptrdiff_t>(before), blocks->end());
  return begin;
}

std::vector<CodeBlock> ReadStreams(Span file) {
  std::vector<CodeBlock> blocks;
  for (std::uint64_t end = file.nbytes; end > 0;) {
    while (end >= 4 && LoadLe32(file.data + end - 4) == 0) end -= 4;
    end = ReadStream(file, end, &blocks);
  }
  std::reverse(blocks.begin(), blocks.end());
  std::uint64_t raw_offset = 0;
  for (CodeBlock& block : blocks) {
    block.raw_offset = raw_offset;
    raw_offset += block.raw_nbytes;
  }
  return blocks;
}

class LiblzmaDecoder final : public SequentialDecoder {
 public:
  using Start = lzma_ret (*)(lzma_stream*);

  LiblzmaDecoder(Span file, Start start) {
    Require(start(&coder_.stream), "the file", 0);
    coder_.stream.next_in = file.data;
    coder_.stream.avail_in = file.nbytes;
  }

  std::size_t Read(std::uint8_t* out, std::size_t nbytes) override {
    lzma_stream& coder = coder_.stream;
    coder.next_out = out;
    coder.avail_out = nbytes;
    while (coder.avail_out != 0 && !ended_) {
      const lzma_ret status = lzma_code(&coder, LZMA_FINISH);
      Require(status, "the file", coder.total_in);
      ended_ = status == LZMA_STREAM_END;
    }
    if (ended_ && coder.avail_in != 0) {
      throw Error::Corrupt("xz: something follows the end", coder.total_in);
    }
    return nbytes - coder.avail_out;
  }

 private:
  Coder coder_;
  bool ended_ = false;
};

}  // namespace

bool XzDecompressor::Recognizes(Span file) const {
  return file.nbytes >= kMagic.size() && std::equal(kMagic.begin(), kMagic.end(), file.data);
}

std::unique_ptr<BlockStream> XzDecompressor::OpenBlocks(Span file) const {
  std::vector<CodeBlock> blocks = ReadStreams(file);
  if (blocks.size() < 2 || std::any_of(blocks.begin(), blocks.end(), [](const CodeBlock& block) {
        return block.raw_nbytes > kMostBlockNbytes;
      })) {
    return nullptr;
  }
  return std::make_unique<XzStreams>(std::move(blocks));
}

std::unique_ptr<SequentialDecoder> XzDecompressor::OpenSequential(Span file) const {
  return std::make_unique<LiblzmaDecoder>(file, [](lzma_stream* coder) {
    return lzma_stream_decoder(coder, kMostMemoryNbytes,
                               LZMA_CONCATENATED | LZMA_TELL_UNSUPPORTED_CHECK);
  });
}

bool LzmaDecompressor::Recognizes(Span file) const {
  constexpr std::size_t kHeaderNbytes = 13;
  constexpr std::uint8_t kMostProperties = (4 * 5 + 4) * 9 + 8;  // pb, lp, lc
  if (file.nbytes < kHeaderNbytes || file.data[0] > kMostProperties) return false;
  // 2^n or 2^n + 2^(n-1), or all that 32 bits say.
  const std::uint32_t dictionary = LoadLe32(file.data + 1);
  const std::uint32_t rest = dictionary & (dictionary - 1);
  const bool usual = dictionary == UINT32_MAX || rest == 0 ||
                     ((rest & (rest - 1)) == 0 && (dictionary ^ rest) * 2 == rest);
  const std::uint64_t raw_nbytes = LoadLe64(file.data + 5);
  return dictionary >= LZMA_DICT_SIZE_MIN && usual &&
         (raw_nbytes == UINT64_MAX || raw_nbytes < std::uint64_t{1} << 38);
}

std::unique_ptr<BlockStream> LzmaDecompressor::OpenBlocks(Span /*file*/) const { return nullptr; }

std::unique_ptr<SequentialDecoder> LzmaDecompressor::OpenSequential(Span file) const {
  return std::make_unique<LiblzmaDecoder>(
      file, [](lzma_stream* coder) { return lzma_alone_decoder(coder, kMostMemoryNbytes); });
}

}  // namespace pyckpt::xz
