#include "read/ordered_image.h"

#include <algorithm>

namespace pyckpt {

void OrderedImage::Skip(std::uint64_t offset) {
  const auto forget = [this](std::uint64_t begin, std::uint64_t end) {
    if (begin < end) Forget({begin, end - begin});
  };
  forget(skipped_nbytes_, std::min(offset, kept_.offset));
  forget(std::max(skipped_nbytes_, kept_.end()), offset);
  skipped_nbytes_ = std::max(skipped_nbytes_, offset);
  // Hardly anything is skipped if the bytes ahead are kept.
  DecodeTo(offset, kept_.offset <= nbytes_ && offset <= kept_.end() + kUnitNbytes);
}

void OrderedImage::Keep(Extent extent) {
  const std::uint64_t end = std::min(kept_.end(), skipped_nbytes_);
  if (kept_.offset < end) Forget({kept_.offset, end - kept_.offset});
  kept_ = extent;
}

std::vector<Damage> OrderedImage::Finish() {
  try {
    Forget({nbytes_, kUnknownNbytes - nbytes_});
    DecodeTo(kUnknownNbytes, /*wanted=*/false);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCorrupt) throw;
    return {{{nbytes_, kUnknownNbytes - nbytes_}, error.offset(), error.what()}};
  }
  return {};
}

bool OrderedImage::DecodeTo(std::uint64_t end, bool wanted) {
  if (end <= nbytes_) return true;
  if (failure_) throw Error(*failure_);
  try {
    Decode(end, wanted);
  } catch (const Error& error) {
    failure_ = error;
    throw;
  } catch (...) {
    // An exception of poll is not kept, because it may hold a reference to the user of the image.
    failure_ = Error(ErrorKind::kArgument, "an earlier call stopped the decoding");
    throw;
  }
  return end <= nbytes_;
}

void OrderedImage::Decode(std::uint64_t end, bool wanted) {
  std::uint64_t begin = nbytes_;
  if (wanted && end - nbytes_ >= kManyNbytes) {
    if (!wants_many_) PreferHugePages(map_->data(), map_->capacity());
    wants_many_ = true;
    if (!ended_ && map_.use_count() == 1 && DecodeWhole(end)) {
      ended_ = true;
      DropForgotten({0, nbytes_});
    }
  }
  while (nbytes_ < end && !ended_) {
    ended_ = !Advance();
    if (nbytes_ - begin >= kStepNbytes || nbytes_ >= end || ended_) {
      DropForgotten({begin, nbytes_ - begin});
      begin = nbytes_;
    }
  }
}

std::uint8_t* OrderedImage::Room(std::size_t nbytes) {
  // Pages that are not written cost nothing, so the room may double.
  const std::size_t needed = nbytes_ + nbytes;
  if (needed > map_->capacity()) {
    if (map_.use_count() != 1) {  // growing would move bytes that were taken
      throw Error(ErrorKind::kArgument, "cannot decode more: bytes are taken and must stay");
    }
    if (!map_->Grow(std::max(needed, 2 * map_->capacity()))) throw NoRoom(needed);
    // Of the whole room, because it could not grow any more if a part of it were different.
    if (wants_many_) PreferHugePages(map_->data(), map_->capacity());
  }
  return map_->data() + nbytes_;
}

}  // namespace pyckpt
