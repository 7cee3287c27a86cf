#include "codec/xz/encoder.h"

#include <lzma.h>

#include <algorithm>
#include <array>

#include "codec/probe.h"
#include "codec/typed_codec.h"
#include "codec/xz/literals.h"
#include "codec/xz/matches.h"

namespace pyckpt::xz {
namespace {

constexpr lzma_check kCheck = LZMA_CHECK_CRC64;

struct XzChunk final : EncodedChunk {
  std::uint64_t unpadded_nbytes = 0;  // of the block, for the stream's index
};

class XzEncoder final : public ContiguousEncoder<XzChunk> {
 public:
  explicit XzEncoder(int level) : level_(level) {}

 protected:
  void EncodeBytes(Span raw, const Chunk& chunk, XzChunk* out) override {
    const LiteralBits bits = ChooseLiteralBits(raw, chunk.element_nbytes);
    const bool matches = MatchesPay(raw, bits);
    const std::size_t bound =
        matches ? Lzma2MatchesBound(raw.nbytes) : Lzma2LiteralEncoder::Bound(raw.nbytes);
    std::uint8_t* begin =
        out->buffer.Reserve(LZMA_BLOCK_HEADER_SIZE_MAX + bound + kAlignment + LZMA_CHECK_SIZE_MAX);
    // The header's length depends on the sizes in it. There is room for the longest header in front
    // of the data; the header is written directly before the data once the sizes are known.
    std::uint8_t* data = begin + LZMA_BLOCK_HEADER_SIZE_MAX;
    // Literals refer to nothing, so decoders need only the smallest dictionary.
    const lzma_options_lzma options =
        MatchOptions(level_, bits, matches ? raw.nbytes : LZMA_DICT_SIZE_MIN);
    std::uint8_t* end =
        matches ? WriteLzma2Matches(raw, options, data) : literals_.Encode(raw, bits, data);
    Frame(raw, options, data, end, out);
  }

 private:
  static constexpr std::size_t kAlignment = 4;  // of blocks, in bytes

  // True if liblzma with matches saves enough, compared with literals, to be worth its slowness.
  // Both encode a sample to find out.
  bool MatchesPay(Span raw, LiteralBits bits) {
    if (HasFarRepeats(raw)) return true;
    // Wide integers that count up share only their upper bytes.
    if (!HasRepeats(raw, bits.position >= 2 ? 3 : 4)) return false;
    constexpr std::size_t kPieces = 8;
    constexpr std::size_t kPieceNbytes = 4096;
    constexpr std::size_t kWorthwhile = 24;  // must save one part in this many
    Span sample = raw;
    if (raw.nbytes > kPieces * kPieceNbytes) {
      std::uint8_t* to = sample_.Reserve(kPieces * kPieceNbytes);
      sample = {to, kPieces * kPieceNbytes};
      // The pieces come from the middle of each eighth, because an archive's first chunk begins
      // with headers and a pickle, which would count too much. They are aligned to eight bytes, the
      // widest element, so that the bytes of an element keep their positions.
      const std::size_t stride = raw.nbytes / kPieces;
      for (std::size_t k = 0; k < kPieces; ++k) {
        const std::size_t at = (k * stride + (stride - kPieceNbytes) / 2) & ~std::size_t{7};
        to = std::copy_n(raw.data + at, kPieceNbytes, to);
      }
    }
    std::uint8_t* out = sample_code_.Reserve(
        std::max(Lzma2LiteralEncoder::Bound(sample.nbytes), Lzma2MatchesBound(sample.nbytes)));
    const auto literals_nbytes =
        static_cast<std::size_t>(literals_.Encode(sample, bits, out) - out);
    const lzma_options_lzma options = MatchOptions(level_, bits, sample.nbytes);
    const auto matches_nbytes =
        static_cast<std::size_t>(WriteLzma2Matches(sample, options, out) - out);
    return matches_nbytes < literals_nbytes - literals_nbytes / kWorthwhile;
  }

  // Completes the block around the LZMA2 data: a header with both sizes, padding, a check.
  static void Frame(Span raw, lzma_options_lzma options, std::uint8_t* data, std::uint8_t* end,
                    XzChunk* out) {
    std::array<lzma_filter, 2> filters = {
        {{LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, nullptr}}};
    lzma_block block{};
    block.check = kCheck;
    block.filters = filters.data();
    block.compressed_size = static_cast<lzma_vli>(end - data);
    block.uncompressed_size = raw.nbytes;
    while ((end - data) % kAlignment != 0) *end++ = 0;
    for (std::uint64_t crc = lzma_crc64(raw.data, raw.nbytes, 0), i = 0; i < sizeof crc; ++i) {
      *end++ = static_cast<std::uint8_t>(crc >> (8 * i));
    }
    RequireLzma(lzma_block_header_size(&block), "a block header");
    std::uint8_t* header = data - block.header_size;
    RequireLzma(lzma_block_header_encode(&block, header), "a block header");
    out->unpadded_nbytes = lzma_block_unpadded_size(&block);
    out->nbytes = static_cast<std::uint64_t>(end - header);
    out->spans.assign(1, {header, out->nbytes});
  }

  int level_;
  Lzma2LiteralEncoder literals_;
  Buffer sample_;
  Buffer sample_code_;
};

class XzJoiner final : public TypedJoiner<XzChunk> {
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
    RequireLzma(lzma_stream_header_encode(&flags_, Bytes(&out)), "the stream header");
    return out;
  }

  std::string End() override {
    flags_.backward_size = lzma_index_size(index_);
    std::string out(flags_.backward_size + LZMA_STREAM_HEADER_SIZE, '\0');
    std::size_t used = 0;
    RequireLzma(lzma_index_buffer_encode(index_, Bytes(&out), &used, flags_.backward_size),
                "the index");
    RequireLzma(lzma_stream_footer_encode(&flags_, Bytes(&out) + used), "the stream footer");
    return out;
  }

 protected:
  void AppendTyped(XzChunk* chunk) override {
    RequireLzma(lzma_index_append(index_, nullptr, chunk->unpadded_nbytes, chunk->raw_nbytes),
                "the index");
  }

 private:
  static std::uint8_t* Bytes(std::string* s) { return reinterpret_cast<std::uint8_t*>(s->data()); }

  lzma_index* index_;
  lzma_stream_flags flags_{};
};

}  // namespace

std::unique_ptr<EncodedChunk> XzCodec::NewChunk() const { return std::make_unique<XzChunk>(); }

std::unique_ptr<ChunkEncoder> XzCodec::NewEncoder(int level) const {
  return std::make_unique<XzEncoder>(level);
}

std::unique_ptr<StreamJoiner> XzCodec::NewJoiner() const { return std::make_unique<XzJoiner>(); }

}  // namespace pyckpt::xz
