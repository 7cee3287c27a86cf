#include "read/sequential_image.h"

#include <cstddef>
#include <utility>

#include "codec/decoder.h"
#include "read/ordered_image.h"

namespace pyckpt {
namespace {

class SequentialImage final : public OrderedImage {
 public:
  SequentialImage(std::unique_ptr<FileMap> file, const Format& format, const ReadOptions& options)
      : OrderedImage(std::move(file), format, options),
        decoder_(format.decompressor->OpenSequential(OrderedImage::file())) {}

  std::uint64_t trailing_nbytes() const override { return file().nbytes - decoder_->used_nbytes(); }

 protected:
  bool Advance() override {
    const std::size_t n = decoder_->Read(Room(kUnitNbytes), kUnitNbytes);
    Grew(n);
    Poll();
    return n == kUnitNbytes;
  }

  bool DecodeWhole(std::uint64_t end) override {
    const std::uint64_t nbytes = decoder_->WholeNbytes();
    const std::uint64_t before = placed_nbytes();
    if (nbytes < end || nbytes - end > kUnitNbytes) return false;
    if (!decoder_->ReadWhole(Room(nbytes - before) - before, nbytes)) return false;
    Grew(nbytes - before);
    Poll();
    return true;
  }

 private:
  std::unique_ptr<SequentialDecoder> decoder_;
};

}  // namespace

std::shared_ptr<StreamImage> NewSequentialImage(std::unique_ptr<FileMap> file, const Format& format,
                                                const ReadOptions& options) {
  return std::make_shared<SequentialImage>(std::move(file), format, options);
}

}  // namespace pyckpt
