// Streams whose size is not known before they are decoded. They are decoded from the start, as far
// as needed. All of a file with a supply is brought first.
#ifndef PYCKPT_READ_ORDERED_IMAGE_H_
#define PYCKPT_READ_ORDERED_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/anonymous_map.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/file_map.h"
#include "codec/decoder.h"
#include "codec/formats.h"
#include "read/stream_image.h"

namespace pyckpt {

// The common part of these images. Derived classes decode.
class OrderedImage : public StreamImage {
 public:
  OrderedImage(std::unique_ptr<FileMap> file, const Format& format, const ReadOptions& options)
      : StreamImage(options), file_(std::move(file)), format_(format) {
    file_->file_bytes().NeedAll();
  }

  const Format* format() const override { return &format_; }
  std::uint64_t CodeNbytes(Extent /*extent*/) const override { return 0; }
  std::uint64_t nbytes() const override { return ended_ ? nbytes_ : kUnknownNbytes; }
  std::uint64_t placed_nbytes() const override { return nbytes_; }

  void Skip(std::uint64_t offset) override;
  void Keep(Extent extent) override;

  std::vector<Damage> Finish() override;

 protected:
  std::uint8_t* base() const override { return map_->data(); }
  std::shared_ptr<const void> memory() const override { return map_; }
  bool counts_fill() const override { return false; }

  bool Reach(std::uint64_t end) override { return DecodeTo(end, /*wanted=*/true); }

  Extent UnitExtent(std::size_t unit) const override {
    const std::uint64_t offset = unit * kUnitNbytes;
    return {offset, std::min(kUnitNbytes, nbytes_ - offset)};
  }

  // Decodes a little more; false at the end.
  virtual bool Advance() = 0;

  // Decodes the whole stream at once to its place, if this is faster and if it has hardly more than
  // end bytes. Called before the bytes up to end are decoded to be kept, and only while nothing is
  // taken. Returns whether it did.
  virtual bool DecodeWhole(std::uint64_t end) {
    (void)end;
    return false;
  }

  // Room for nbytes more bytes. Call Grew() when they are decoded. Throws kArgument if room is
  // missing while bytes are taken, and Corrupt if the system has no more address space.
  std::uint8_t* Room(std::size_t nbytes);
  void Grew(std::size_t nbytes) {
    nbytes_ += nbytes;
    Count(nbytes);
  }

  Span file() const { return file_->bytes(); }

 private:
  // So many bytes are decoded before the memory of forgotten bytes is given back.
  static constexpr std::uint64_t kStepNbytes = std::uint64_t{16} << 20;
  // If so many bytes are wanted at once, large pages and DecodeWhole() save time.
  static constexpr std::uint64_t kManyNbytes = std::uint64_t{4} << 20;

  // Decodes up to end. wanted is whether these bytes are kept. Returns false if the stream ends
  // before.
  bool DecodeTo(std::uint64_t end, bool wanted);
  void Decode(std::uint64_t end, bool wanted);

  std::unique_ptr<FileMap> file_;
  const Format& format_;
  std::shared_ptr<AnonymousMap> map_ = std::make_shared<AnonymousMap>();
  std::uint64_t nbytes_ = 0;  // decoded so far
  std::uint64_t skipped_nbytes_ = 0;
  Extent kept_;
  bool wants_many_ = false;
  bool ended_ = false;
  std::optional<Error> failure_;
};

}  // namespace pyckpt

#endif  // PYCKPT_READ_ORDERED_IMAGE_H_
