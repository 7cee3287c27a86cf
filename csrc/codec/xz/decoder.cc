#include "codec/xz/decoder.h"

#include <lzma.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "codec/xz/block_decoder.h"
#include "codec/xz/coder.h"
#include "codec/xz/literal_decoder.h"
#include "codec/xz/stream_index.h"

namespace pyckpt::xz {
namespace {

// For the largest dictionary that xz writes, 1.5 GiB.
constexpr std::uint64_t kMostMemoryNbytes = std::uint64_t{1600} << 20;

// Each block has its own check, and the index was compared with the file when the file was opened.
class XzChecker final : public StreamChecker {
 public:
  explicit XzChecker(std::uint64_t used_nbytes) : used_nbytes_(used_nbytes) {}

  void Append(const CodeBlock& /*block*/, const DecodedBlock& /*decoded*/) override {}
  void End() override {}
  std::uint64_t used_nbytes() const override { return used_nbytes_; }

 private:
  std::uint64_t used_nbytes_;
};

class XzStreams final : public BlockStream {
 public:
  explicit XzStreams(Layout layout)
      : used_nbytes_(layout.used_nbytes),
        blocks_(std::move(layout.blocks)),
        checks_(std::make_shared<const StreamChecks>(std::move(layout.checks))) {}

  const std::vector<CodeBlock>& blocks() const override { return blocks_; }
  std::size_t most_in_turn() const override { return Lzma2LiteralDecoder::most_in_turn(); }
  std::unique_ptr<BlockDecoder> NewDecoder() const override {
    return std::make_unique<XzBlockDecoder>(checks_);
  }
  std::unique_ptr<StreamChecker> NewChecker() const override {
    return std::make_unique<XzChecker>(used_nbytes_);
  }

 private:
  std::uint64_t used_nbytes_;
  std::vector<CodeBlock> blocks_;
  std::shared_ptr<const StreamChecks> checks_;
};

class LiblzmaDecoder final : public SequentialDecoder {
 public:
  using Start = lzma_ret (*)(lzma_stream*);

  LiblzmaDecoder(Span file, Start start) {
    RequireDecoded(start(&coder_.stream), "the file", 0);
    coder_.stream.next_in = file.data;
    coder_.stream.avail_in = file.nbytes;
  }

  std::size_t Read(std::uint8_t* out, std::size_t nbytes) override {
    lzma_stream& coder = coder_.stream;
    coder.next_out = out;
    coder.avail_out = nbytes;
    while (coder.avail_out != 0 && !ended_) {
      const lzma_ret status = lzma_code(&coder, LZMA_FINISH);
      RequireDecoded(status, "the file", coder.total_in);
      ended_ = status == LZMA_STREAM_END;
    }
    return nbytes - coder.avail_out;
  }
  std::uint64_t used_nbytes() const override { return coder_.stream.total_in; }

 private:
  Coder coder_;
  bool ended_ = false;
};

}  // namespace

bool XzDecompressor::Recognizes(Span file) const { return HasMagic(file, 0); }

std::unique_ptr<BlockStream> XzDecompressor::OpenBlocks(const FileBytes& file) const {
  Layout layout = ReadStreams(file);
  const std::vector<CodeBlock>& blocks = layout.blocks;
  if (blocks.size() < 2 || std::any_of(blocks.begin(), blocks.end(), [](const CodeBlock& block) {
        return block.raw_nbytes > kMostBlockNbytes;
      })) {
    return nullptr;
  }
  return std::make_unique<XzStreams>(std::move(layout));
}

std::unique_ptr<SequentialDecoder> XzDecompressor::OpenSequential(Span file) const {
  const Span used{file.data, static_cast<std::size_t>(ReadStreams(file).used_nbytes)};
  return std::make_unique<LiblzmaDecoder>(used, [](lzma_stream* coder) {
    return lzma_stream_decoder(coder, kMostMemoryNbytes,
                               LZMA_CONCATENATED | LZMA_TELL_UNSUPPORTED_CHECK);
  });
}

bool XzDecompressor::IsIndex(Span raw) const {
  // A number, then for each member its name, NUL and its offset. The last name is empty.
  constexpr std::uint64_t kPixzMagic = 0xDBAE14D62E324CA6;
  constexpr std::size_t kOffsetNbytes = 8;
  if (raw.nbytes < sizeof kPixzMagic || LoadLe64(raw.data) != kPixzMagic) return false;
  for (const std::uint8_t *at = raw.data + sizeof kPixzMagic, *end = raw.data + raw.nbytes;;) {
    const std::uint8_t* name_end = std::find(at, end, 0);
    if (end - name_end < static_cast<std::ptrdiff_t>(1 + kOffsetNbytes)) return false;
    const bool is_last = name_end == at;
    at = name_end + 1 + kOffsetNbytes;
    if (is_last) return at == end;
  }
}

bool LzmaDecompressor::Recognizes(Span file) const {
  constexpr std::size_t kHeaderNbytes = 13;
  constexpr std::uint8_t kMostProperties = (4 * 5 + 4) * 9 + 8;  // pb, lp, lc
  if (file.nbytes < kHeaderNbytes || file.data[0] > kMostProperties) return false;
  // xz expects 2^n, 2^n + 2^(n-1) or 2^32 - 1.
  const std::uint32_t dictionary = LoadLe32(file.data + 1);
  const std::uint32_t rest = dictionary & (dictionary - 1);
  const bool usual = dictionary == UINT32_MAX || rest == 0 ||
                     ((rest & (rest - 1)) == 0 && (dictionary ^ rest) * 2 == rest);
  const std::uint64_t raw_nbytes = LoadLe64(file.data + 5);
  return dictionary >= LZMA_DICT_SIZE_MIN && usual &&
         (raw_nbytes == UINT64_MAX || raw_nbytes < std::uint64_t{1} << 38);
}

std::unique_ptr<BlockStream> LzmaDecompressor::OpenBlocks(const FileBytes& /*file*/) const {
  return nullptr;
}

std::unique_ptr<SequentialDecoder> LzmaDecompressor::OpenSequential(Span file) const {
  return std::make_unique<LiblzmaDecoder>(
      file, [](lzma_stream* coder) { return lzma_alone_decoder(coder, kMostMemoryNbytes); });
}

}  // namespace pyckpt::xz
