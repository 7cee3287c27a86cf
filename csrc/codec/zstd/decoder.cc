#include "codec/zstd/decoder.h"

#include <zstd.h>
#include <zstd_errors.h>

#include <new>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "codec/zstd/frames.h"

namespace pyckpt::zstd {
namespace {

constexpr int kMostWindowLog = 27;

// Throws Corrupt (or std::bad_alloc, if libzstd is out of memory) if result is an error. offset is
// where the frame, or the part of it that was read last, is in the file.
std::size_t RequireDecoded(std::size_t result, std::uint64_t offset) {
  switch (ZSTD_getErrorCode(result)) {
    case ZSTD_error_no_error:
      return result;
    case ZSTD_error_memory_allocation:
      throw std::bad_alloc();
    case ZSTD_error_frameParameter_windowTooLarge:
      throw Error::Corrupt("zstd: a frame asks for a window of more than 128 MiB", offset);
    case ZSTD_error_dictionary_wrong:
      throw Error::Corrupt("zstd: a frame asks for a dictionary", offset);
    case ZSTD_error_checksum_wrong:
      throw Error::Corrupt("zstd: the checksum of a frame does not match", offset);
    case ZSTD_error_srcSize_wrong:
      throw Error::Corrupt("zstd: a frame is cut off", offset);
    default:
      throw Error::Corrupt("zstd: the compressed data is damaged", offset);
  }
}

class Context {
 public:
  Context() : context_(ZSTD_createDCtx()) {
    if (context_ == nullptr) throw std::bad_alloc();
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() { ZSTD_freeDCtx(context_); }

  ZSTD_DCtx* get() { return context_; }

 private:
  ZSTD_DCtx* context_;
};

class FrameDecoder final : public BlockDecoder {
 public:
  DecodedBlock Decode(Span file, const CodeBlock& block, std::uint8_t* out,
                      std::size_t capacity) override {
    if (capacity < block.raw_nbytes) {
      throw Error(ErrorKind::kArgument, "zstd: a frame needs more room");
    }
    const std::uint64_t begin = block.code_bit / 8;
    const std::size_t code_nbytes = block.code_nbits / 8;
    const std::size_t nbytes = RequireDecoded(
        ZSTD_decompressDCtx(context_.get(), out, block.raw_nbytes, file.data + begin, code_nbytes),
        begin);
    if (nbytes != block.raw_nbytes) {
      throw Error::Corrupt("zstd: a frame has another size than the file says", begin);
    }
    return {nbytes, block.code_bit + block.code_nbits, 0};
  }

 private:
  Context context_;
};

// Each frame has its own checksum.
class FramesChecker final : public StreamChecker {
 public:
  explicit FramesChecker(std::uint64_t used_nbytes) : used_nbytes_(used_nbytes) {}

  void Append(const CodeBlock& /*block*/, const DecodedBlock& /*decoded*/) override {}
  void End() override {}
  std::uint64_t used_nbytes() const override { return used_nbytes_; }

 private:
  std::uint64_t used_nbytes_;
};

// used_nbytes, or the whole file if only zeros follow.
std::uint64_t WithZeros(Span file, std::uint64_t used_nbytes) {
  return IsZero(file, used_nbytes) ? file.nbytes : used_nbytes;
}

class FrameStream final : public BlockStream {
 public:
  FrameStream(Span file, Frames frames) : file_(file), frames_(std::move(frames)) {}

  const std::vector<CodeBlock>& blocks() const override { return frames_.blocks; }
  std::unique_ptr<BlockDecoder> NewDecoder() const override {
    return std::make_unique<FrameDecoder>();
  }
  std::unique_ptr<StreamChecker> NewChecker() const override {
    return std::make_unique<FramesChecker>(WithZeros(file_, frames_.used_nbytes));
  }

 private:
  Span file_;
  Frames frames_;
};

class StreamDecoder final : public SequentialDecoder {
 public:
  explicit StreamDecoder(Span file) : file_(file), in_{file.data, file.nbytes, 0} {
    RequireDecoded(ZSTD_DCtx_setParameter(context_.get(), ZSTD_d_windowLogMax, kMostWindowLog), 0);
  }

  std::size_t Read(std::uint8_t* out, std::size_t nbytes) override {
    ZSTD_outBuffer to{out, nbytes, 0};
    while (to.pos < to.size && !ended_) {
      const bool all_given = in_.pos == in_.size;
      const std::size_t done = to.pos;
      const std::size_t wanted =
          RequireDecoded(ZSTD_decompressStream(context_.get(), &to, &in_), in_.pos);
      if (wanted == 0) {
        ended_ = !FrameBegins(file_, SkipFrames(file_, in_.pos));
      } else if (all_given && to.pos == done) {
        throw Error::Corrupt("zstd: the file ends within a frame", file_.nbytes);
      }
    }
    return to.pos;
  }

  std::uint64_t used_nbytes() const override {
    return WithZeros(file_, SkipFrames(file_, in_.pos));
  }

 private:
  Span file_;
  ZSTD_inBuffer in_;
  Context context_;
  bool ended_ = false;
};

}  // namespace

bool ZstdDecompressor::Recognizes(Span file) const { return HasMagic(file, SkipFrames(file, 0)); }

std::unique_ptr<BlockStream> ZstdDecompressor::OpenBlocks(const FileBytes& file) const {
  Frames frames = FindFrames(file);
  if (frames.blocks.empty()) return nullptr;
  return std::make_unique<FrameStream>(file.bytes(), std::move(frames));
}

std::unique_ptr<SequentialDecoder> ZstdDecompressor::OpenSequential(Span file) const {
  return std::make_unique<StreamDecoder>(file);
}

}  // namespace pyckpt::zstd
