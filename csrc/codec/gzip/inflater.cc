#include "codec/gzip/inflater.h"

#include <zlib.h>

#include <algorithm>
#include <new>

#include "base/error.h"

namespace pyckpt::gzip {
namespace {

constexpr std::uint64_t kMostAtOnce = std::uint64_t{1} << 30;  // the library counts in 32 bits
constexpr int kRawDeflate = -15;                               // without zlib's or gzip's header

}  // namespace

Inflater::Inflater() : state_(std::make_unique<z_stream_s>()) {
  if (inflateInit2(state_.get(), kRawDeflate) != Z_OK) throw std::bad_alloc();
}

Inflater::~Inflater() { inflateEnd(state_.get()); }

void Inflater::Start(Span file, std::uint64_t begin) {
  inflateReset(state_.get());
  state_->avail_in = 0;
  file_ = file;
  given_ = begin;
  ended_ = false;
}

std::size_t Inflater::Inflate(std::uint8_t* out, std::size_t nbytes) {
  std::size_t done = 0;
  while (done < nbytes && !ended_) {
    if (state_->avail_in == 0) {
      state_->avail_in = static_cast<uInt>(std::min(file_.nbytes - given_, kMostAtOnce));
      if (state_->avail_in == 0) break;
      // zlib does not write to it, but its field is not const.
      state_->next_in = const_cast<std::uint8_t*>(file_.data + given_);
      given_ += state_->avail_in;
    }
    const auto room = static_cast<uInt>(std::min<std::uint64_t>(nbytes - done, kMostAtOnce));
    state_->next_out = out + done;
    state_->avail_out = room;
    const int result = inflate(state_.get(), Z_NO_FLUSH);
    done += room - state_->avail_out;
    ended_ = result == Z_STREAM_END;
    // Z_BUF_ERROR is no error here: the last bytes of the file gave no output, and no more follow.
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
      throw Error::Corrupt("gzip: the compressed data is damaged", offset());
    }
  }
  return done;
}

std::uint64_t Inflater::offset() const { return given_ - state_->avail_in; }

}  // namespace pyckpt::gzip
