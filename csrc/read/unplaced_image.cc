#include "read/unplaced_image.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/parallel.h"
#include "read/ordered_image.h"

namespace pyckpt {
namespace {

class UnplacedImage final : public OrderedImage {
 public:
  UnplacedImage(std::unique_ptr<FileMap> file, std::unique_ptr<BlockStream> stream,
                const Format& format, const ReadOptions& options)
      : OrderedImage(std::move(file), format, options),
        stream_(std::move(stream)),
        checker_(stream_->NewChecker()),
        large_block_decoder_(stream_->NewDecoder()),
        wave_(kWaveOfThread * static_cast<std::size_t>(std::max(1, options.threads))) {}

  std::uint64_t trailing_nbytes() const override { return file().nbytes - checker_->used_nbytes(); }

 protected:
  // One block at a time, so that skipped bytes are given back soon.
  bool Advance() override {
    if (next_ == wave_end_) DecodeWave();
    const Slot& slot = wave_[next_ - wave_begin_];
    const CodeBlock& block = stream_->blocks()[next_++];
    if (checker_->Accepts(block)) Append(block, slot);
    if (next_ != stream_->blocks().size()) return true;
    checker_->End();
    return false;
  }

 private:
  // Blocks of a wave per thread: so many that threads seldom wait for the last block.
  static constexpr std::size_t kWaveOfThread = 8;
  // A block holds about 900 kB. If most bytes are equal to their neighbours, it can hold 46 MB.
  static constexpr std::uint64_t kMostWaitingNbytes = std::uint64_t{2} << 20;

  struct Slot {
    mutable Buffer raw;
    DecodedBlock decoded;
    bool is_large = false;     // if true, it was not decoded
    std::exception_ptr error;  // ignored unless the block is accepted
  };

  void DecodeWave() {
    wave_begin_ = next_;
    const std::size_t count = std::min(wave_.size(), stream_->blocks().size() - next_);
    RunParallel(
        count, options().threads,
        [this] {
          const std::shared_ptr<BlockDecoder> decoder = stream_->NewDecoder();
          return [this, decoder](std::size_t i) { Decode(decoder.get(), i); };
        },
        [this] { Poll(); });
    wave_end_ = next_ + count;
  }

  void Append(const CodeBlock& block, const Slot& slot) {
    if (slot.error) std::rethrow_exception(slot.error);
    DecodedBlock decoded = slot.decoded;
    if (slot.is_large) {
      const std::uint64_t nbytes = large_block_decoder_->RawNbytes(file(), block);
      decoded = large_block_decoder_->Decode(file(), block, Room(nbytes), nbytes);
      Poll();
    } else if (decoded.raw_nbytes != 0) {
      std::memcpy(Room(decoded.raw_nbytes), slot.raw.data(), decoded.raw_nbytes);
    }
    checker_->Append(block, decoded);
    Grew(decoded.raw_nbytes);
  }

  void Decode(BlockDecoder* decoder, std::size_t i) {
    Slot& slot = wave_[i];
    slot.error = nullptr;
    try {
      const CodeBlock& block = stream_->blocks()[next_ + i];
      const std::uint64_t nbytes = decoder->RawNbytes(file(), block);
      slot.is_large = nbytes > kMostWaitingNbytes;
      if (slot.is_large) return;
      slot.decoded = decoder->Decode(file(), block, slot.raw.Reserve(nbytes), nbytes);
    } catch (const Error&) {
      slot.error = std::current_exception();
    }
  }

  std::unique_ptr<BlockStream> stream_;
  std::unique_ptr<StreamChecker> checker_;
  std::unique_ptr<BlockDecoder> large_block_decoder_;
  std::vector<Slot> wave_;
  std::size_t next_ = 0;  // the next block; slots hold blocks [wave_begin_, wave_end_)
  std::size_t wave_begin_ = 0;
  std::size_t wave_end_ = 0;
};

}  // namespace

std::shared_ptr<StreamImage> NewUnplacedImage(std::unique_ptr<FileMap> file,
                                              std::unique_ptr<BlockStream> stream,
                                              const Format& format, const ReadOptions& options) {
  return std::make_shared<UnplacedImage>(std::move(file), std::move(stream), format, options);
}

}  // namespace pyckpt
