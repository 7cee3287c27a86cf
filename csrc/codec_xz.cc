#include "codec_xz.h"

#include <lzma.h>

#include <array>

#include "error.h"
#include "lzma_literals.h"
#include "probe.h"

namespace pyckpt::xz {
namespace {

constexpr lzma_check kCheck = LZMA_CHECK_CRC64;

void Require(lzma_ret status, const char* doing) {
  if (status == LZMA_OK) return;
  throw Error(ErrorKind::kCodec,
              std::string("liblzma: ") + doing + " failed with code " + std::to_string(status));
}

lzma_options_lzma MatchOptions(int level, std::size_t raw_nbytes) {
  lzma_options_lzma options{};
  lzma_lzma_preset(&options, static_cast<std::uint32_t>(level));
  // A block refers to itself alone: more dictionary is memory for nothing.
  if (options.dict_size > raw_nbytes) {
    options.dict_size = static_cast<std::uint32_t>(
        raw_nbytes > LZMA_DICT_SIZE_MIN ? raw_nbytes : LZMA_DICT_SIZE_MIN);
  }
  return options;
}

class XzEncoder final : public ContiguousEncoder {
 public:
  explicit XzEncoder(int level) : level_(level) {}

 protected:
  void EncodeBytes(Span raw, std::uint32_t element_nbytes, EncodedChunk* out) override {
    if (HasRepeats(raw)) {
      FindMatches(raw, out);
    } else {
      WriteLiterals(raw, element_nbytes, out);
    }
  }

 private:
  void FindMatches(Span raw, EncodedChunk* out) const {
    lzma_options_lzma options = MatchOptions(level_, raw.nbytes);
    std::array<lzma_filter, 2> filters = Filters(&options);
    lzma_block block = Block(filters.data());
    const std::size_t bound = lzma_block_buffer_bound(raw.nbytes);
    std::size_t used = 0;
    // Writes the block with both sizes in its header, and falls back to
    // uncompressed LZMA2 chunks where coding does not pay.
    Require(lzma_block_buffer_encode(&block, nullptr, raw.data, raw.nbytes,
                                     out->buffer.Reserve(bound), &used, bound),
            "a block");
    out->unpadded = lzma_block_unpadded_size(&block);
    out->UseBuffer(used);
  }

  // The block's frame around our own LZMA2 data: header, padding to a multiple
  // of four, check.
  static void WriteLiterals(Span raw, std::uint32_t element_nbytes, EncodedChunk* out) {
    lzma_options_lzma options = MatchOptions(0, LZMA_DICT_SIZE_MIN);
    std::array<lzma_filter, 2> filters = Filters(&options);
    lzma_block block = Block(filters.data());
    constexpr std::size_t kPadding = 4;
    std::uint8_t* begin =
        out->buffer.Reserve(LZMA_BLOCK_HEADER_SIZE_MAX + Lzma2LiteralsBound(raw.nbytes) + kPadding +
                            LZMA_CHECK_SIZE_MAX);
    // The header's size depends on the sizes in it; it has room in front, and
    // moves up against the data once they are known.
    std::uint8_t* data = begin + LZMA_BLOCK_HEADER_SIZE_MAX;
    std::uint8_t* end = WriteLzma2Literals(raw, ChooseLiteralBits(element_nbytes), data);
    block.compressed_size = static_cast<lzma_vli>(end - data);
    block.uncompressed_size = raw.nbytes;
    while ((end - data) % kPadding != 0) *end++ = 0;
    for (std::uint64_t crc = lzma_crc64(raw.data, raw.nbytes, 0), i = 0; i < sizeof crc; ++i) {
      *end++ = static_cast<std::uint8_t>(crc >> (8 * i));
    }
    Require(lzma_block_header_size(&block), "a block header");
    std::uint8_t* header = data - block.header_size;
    Require(lzma_block_header_encode(&block, header), "a block header");
    out->unpadded = lzma_block_unpadded_size(&block);
    out->nbytes = static_cast<std::uint64_t>(end - header);
    out->spans.assign(1, {header, out->nbytes});
  }

  static std::array<lzma_filter, 2> Filters(lzma_options_lzma* options) {
    return {{{LZMA_FILTER_LZMA2, options}, {LZMA_VLI_UNKNOWN, nullptr}}};
  }

  static lzma_block Block(lzma_filter* filters) {
    lzma_block block{};
    block.check = kCheck;
    block.filters = filters;
    block.compressed_size = LZMA_VLI_UNKNOWN;
    block.uncompressed_size = LZMA_VLI_UNKNOWN;
    return block;
  }

  int level_;
};

class XzJoiner final : public StreamJoiner {
 public:
  XzJoiner() : index_(lzma_index_init(nullptr)) {
    if (index_ == nullptr) throw std::bad_alloc();
    flags_.check = kCheck;
  }
  XzJoiner(const XzJoiner&) = delete;
  XzJoiner& operator=(const XzJoiner&) = delete;
  ~XzJoiner() override { lzma_index_end(index_, nullptr); }

  std::string Begin() override {
    std::string out(LZMA_STREAM_HEADER_SIZE, '\0');
    Require(lzma_stream_header_encode(&flags_, Bytes(&out)), "the stream header");
    return out;
  }

  void Append(EncodedChunk* chunk) override {
    Require(lzma_index_append(index_, nullptr, chunk->unpadded, chunk->raw_nbytes), "the index");
  }

  std::string End() override {
    flags_.backward_size = lzma_index_size(index_);
    std::string out(flags_.backward_size + LZMA_STREAM_HEADER_SIZE, '\0');
    std::size_t used = 0;
    Require(lzma_index_buffer_encode(index_, Bytes(&out), &used, flags_.backward_size),
            "the index");
    Require(lzma_stream_footer_encode(&flags_, Bytes(&out) + used), "the stream footer");
    return out;
  }

 private:
  static std::uint8_t* Bytes(std::string* s) { return reinterpret_cast<std::uint8_t*>(s->data()); }

  lzma_index* index_;
  lzma_stream_flags flags_{};
};

}  // namespace

std::unique_ptr<ChunkEncoder> XzCodec::NewEncoder(int level) const {
  return std::make_unique<XzEncoder>(level);
}

std::unique_ptr<StreamJoiner> XzCodec::NewJoiner() const { return std::make_unique<XzJoiner>(); }

}  // namespace pyckpt::xz
