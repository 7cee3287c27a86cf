#include "codec/zstd/xxh64.h"

#include <algorithm>

namespace pyckpt::zstd {
namespace {

constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87U;
constexpr std::uint64_t kPrime2 = 0xC2B2AE3D27D4EB4FU;
constexpr std::uint64_t kPrime3 = 0x165667B19E3779F9U;
constexpr std::uint64_t kPrime4 = 0x85EBCA77C2B2AE63U;
constexpr std::uint64_t kPrime5 = 0x27D4EB2F165667C5U;

std::uint64_t Rotated(std::uint64_t x, unsigned nbits) { return x << nbits | x >> (64 - nbits); }

std::uint64_t Round(std::uint64_t lane, std::uint64_t word) {
  return Rotated(lane + word * kPrime2, 31) * kPrime1;
}

using Lanes = std::array<std::uint64_t, 4>;

void AddStripes(const std::uint8_t* at, std::size_t stripes, Lanes* lanes) {
  Lanes now = *lanes;  // in registers
  for (; stripes > 0; --stripes, at += 32) {
    for (std::size_t i = 0; i < now.size(); ++i) now[i] = Round(now[i], LoadLe64(at + 8 * i));
  }
  *lanes = now;
}

}  // namespace

void Xxh64::Add(Span bytes) {
  const std::size_t used = nbytes_ % kStripeNbytes;
  nbytes_ += bytes.nbytes;
  if (used != 0) {
    const std::size_t n = std::min(kStripeNbytes - used, bytes.nbytes);
    std::copy_n(bytes.data, n, rest_.begin() + used);
    bytes = {bytes.data + n, bytes.nbytes - n};
    if (used + n < kStripeNbytes) return;
    AddStripes(rest_.data(), 1, &lanes_);
  }
  const std::size_t stripes = bytes.nbytes / kStripeNbytes;
  AddStripes(bytes.data, stripes, &lanes_);
  std::copy_n(bytes.data + stripes * kStripeNbytes, bytes.nbytes % kStripeNbytes, rest_.begin());
}

std::uint64_t Xxh64::Digest() const {
  std::uint64_t hash = kPrime5;
  if (nbytes_ >= kStripeNbytes) {
    hash = Rotated(lanes_[0], 1) + Rotated(lanes_[1], 7) + Rotated(lanes_[2], 12) +
           Rotated(lanes_[3], 18);
    for (const std::uint64_t lane : lanes_) hash = (hash ^ Round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += nbytes_;
  const std::uint8_t* at = rest_.data();
  const std::uint8_t* end = at + nbytes_ % kStripeNbytes;
  for (; end - at >= 8; at += 8) {
    hash = Rotated(hash ^ Round(0, LoadLe64(at)), 27) * kPrime1 + kPrime4;
  }
  if (end - at >= 4) {
    hash = Rotated(hash ^ LoadLe32(at) * kPrime1, 23) * kPrime2 + kPrime3;
    at += 4;
  }
  for (; at != end; ++at) hash = Rotated(hash ^ *at * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

}  // namespace pyckpt::zstd
