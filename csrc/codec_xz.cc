#include "codec_xz.h"

#include <lzma.h>

#include <array>

#include "error.h"
#include "probe.h"

namespace pyckpt::xz {
namespace {

constexpr lzma_check kCheck = LZMA_CHECK_CRC64;

void Require(lzma_ret status, const char* doing) {
  if (status == LZMA_OK) return;
  throw Error(ErrorKind::kCodec,
              std::string("liblzma: ") + doing + " failed with code " + std::to_string(status));
}

// A byte of a float is foretold by its place in the element and by the byte
// before it, never by an earlier match: lp counts the place, lc takes the top
// bits of the byte before, and the match finder does as little as it may.
lzma_options_lzma FloatOptions(std::uint32_t element_nbytes) {
  constexpr std::uint32_t kSmallestDictionary = 4096;
  lzma_options_lzma options{};
  lzma_lzma_preset(&options, 0);
  options.dict_size = kSmallestDictionary;
  // The two share four bits: 1-, 2- and 4-byte elements take lp 2, and 8-byte
  // ones, which need a bit more to tell their bytes apart, lp 3.
  options.lp = element_nbytes == 8 ? 3 : 2;
  options.lc = LZMA_LCLP_MAX - options.lp;
  options.pb = 0;
  options.mode = LZMA_MODE_FAST;
  options.mf = LZMA_MF_HC4;
  options.nice_len = 4;
  options.depth = 1;
  return options;
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
    lzma_options_lzma options =
        HasRepeats(raw) ? MatchOptions(level_, raw.nbytes) : FloatOptions(element_nbytes);
    std::array<lzma_filter, 2> filters = {
        {{LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, nullptr}}};
    lzma_block block{};
    block.check = kCheck;
    block.filters = filters.data();
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

 private:
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
