#include "inflater.h"

#include <isa-l/igzip_lib.h>

#include <algorithm>

#include "error.h"

namespace pyckpt {
namespace {

constexpr std::uint64_t kMostAtOnce = std::uint64_t{1} << 30;  // the library counts in 32 bits

}  // namespace

Inflater::Inflater() : state_(std::make_unique<inflate_state>()) {}

Inflater::~Inflater() = default;

void Inflater::Start(Span file, std::uint64_t begin, std::uint64_t end) {
  isal_inflate_init(state_.get());
  state_->avail_in = 0;
  file_ = file;
  given_ = begin;
  end_ = end;
}

std::size_t Inflater::Inflate(std::uint8_t* out, std::size_t nbytes) {
  std::size_t done = 0;
  while (done < nbytes && !ended()) {
    if (state_->avail_in == 0) {
      state_->avail_in = static_cast<std::uint32_t>(std::min(end_ - given_, kMostAtOnce));
      // The library's field lacks the const.
      state_->next_in = const_cast<std::uint8_t*>(file_.data + given_);
      given_ += state_->avail_in;
    }
    const auto room =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(nbytes - done, kMostAtOnce));
    const std::uint32_t code = state_->avail_in;
    state_->next_out = out + done;
    state_->avail_out = room;
    if (isal_inflate(state_.get()) != ISAL_DECOMP_OK) {
      throw Error::Corrupt("gzip: its code is damaged", offset());
    }
    done += room - state_->avail_out;
    if (state_->avail_out == room && state_->avail_in == code && given_ == end_) break;
  }
  return done;
}

bool Inflater::ended() const { return state_->block_state == ISAL_BLOCK_FINISH; }

bool Inflater::between_blocks() const {
  // ISAL_BLOCK_HDR: the library has looked for the next header and found not a byte of it.
  return (state_->block_state == ISAL_BLOCK_NEW_HDR || state_->block_state == ISAL_BLOCK_HDR) &&
         state_->read_in_length == 0 && state_->tmp_in_size == 0 && state_->avail_in == 0 &&
         given_ == end_;
}

std::uint64_t Inflater::offset() const {
  return given_ - state_->avail_in -
         static_cast<std::uint64_t>(std::max(state_->read_in_length, 0)) / 8;
}

}  // namespace pyckpt
