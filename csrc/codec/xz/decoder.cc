#include "codec/xz/decoder.h"

#include <lzma.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "codec/xz/block_decoder.h"
#include "codec/xz/coder.h"
#include "codec/xz/stream_index.h"

namespace pyckpt::xz {
namespace {

// For the largest dictionary that xz writes, 1.5 GiB.
constexpr std::uint64_t kMostMemoryNbytes = std::uint64_t{1600} << 20;
constexpr std::array<std::uint8_t, 6> kMagic = {0xFD, '7', 'z', 'X', 'Z', 0};

// Each block has its own check, and the index was compared with the file when the file was opened.
class XzChecker final : public StreamChecker {
 public:
  void Append(const CodeBlock& /*block*/, const DecodedBlock& /*decoded*/) override {}
  void End() override {}
};

class XzStreams final : public BlockStream {
 public:
  explicit XzStreams(Layout layout)
      : blocks_(std::move(layout.blocks)),
        checks_(std::make_shared<const StreamChecks>(std::move(layout.checks))) {}

  const std::vector<CodeBlock>& blocks() const override { return blocks_; }
  std::unique_ptr<BlockDecoder> NewDecoder() const override {
    return std::make_unique<XzBlockDecoder>(checks_);
  }
  std::unique_ptr<StreamChecker> NewChecker() const override {
    return std::make_unique<XzChecker>();
  }

 private:
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
    if (ended_ && coder.avail_in != 0) {
      throw Error::Corrupt("xz: data follows the end of the stream", coder.total_in);
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
  return std::make_unique<LiblzmaDecoder>(file, [](lzma_stream* coder) {
    return lzma_stream_decoder(coder, kMostMemoryNbytes,
                               LZMA_CONCATENATED | LZMA_TELL_UNSUPPORTED_CHECK);
  });
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

std::unique_ptr<BlockStream> LzmaDecompressor::OpenBlocks(Span /*file*/) const { return nullptr; }

std::unique_ptr<SequentialDecoder> LzmaDecompressor::OpenSequential(Span file) const {
  return std::make_unique<LiblzmaDecoder>(
      file, [](lzma_stream* coder) { return lzma_alone_decoder(coder, kMostMemoryNbytes); });
}

}  // namespace pyckpt::xz
