#include "codec/xz/literals.h"

#include <algorithm>

#include "base/cpu.h"
#include "codec/probe.h"
#include "codec/xz/range_coder.h"

namespace pyckpt::xz {
namespace {

// LZMA2 chunk headers (doc/xz-file-format.txt of XZ Utils).
constexpr std::uint8_t kEndMark = 0x00;
constexpr std::uint8_t kStoredResetDictionary = 0x01;
constexpr std::uint8_t kStored = 0x02;
constexpr std::uint8_t kCoded = 0x80;
constexpr std::uint8_t kCodedResetState = 0xA0;
constexpr std::uint8_t kCodedNewProperties = 0xC0;
constexpr std::uint8_t kCodedResetDictionary = 0xE0;
constexpr std::size_t kStoredHeaderNbytes = 3;
constexpr std::size_t kCodedHeaderNbytes = 5;
constexpr std::size_t kMostCode = std::size_t{1} << 16;    // bytes of code in a coded chunk
constexpr std::size_t kMostStored = std::size_t{1} << 16;  // bytes in an uncompressed chunk

// Encodes a lane, on any CPU. Returns the length of its code in bytes.
std::size_t EncodeLane(Span lane, std::uint32_t previous, LiteralBits bits, LiteralModel* model,
                       std::uint8_t* code) {
  std::uint32_t is_literal = model->is_literal;
  RangeCoder coder(code);
  for (std::size_t i = 0; i < lane.nbytes; ++i) {
    Tree& tree = model->trees[TreeIndex(bits, i, previous)];
    previous = lane.data[i];
    coder.EncodeByte(previous, is_literal, Learn(previous, &tree));
    is_literal = NextIsLiteral(is_literal);
  }
  model->is_literal = is_literal;
  return static_cast<std::size_t>(coder.Finish() - code);
}

void Put(std::uint8_t** out, std::size_t value) { *(*out)++ = static_cast<std::uint8_t>(value); }

void PutBe16(std::uint8_t** out, std::size_t value) {
  Put(out, value >> 8);
  Put(out, value);
}

std::size_t LanesIn(std::size_t group_nbytes) {
  return (group_nbytes + kLaneNbytes - 1) / kLaneNbytes;
}

Span Lane(Span group, std::size_t k) {
  const std::size_t at = k * kLaneNbytes;
  return {group.data + at, std::min(kLaneNbytes, group.nbytes - at)};
}

std::uint8_t* WriteStored(Span group, bool first_of_block, std::uint8_t* out) {
  for (std::size_t at = 0; at < group.nbytes; at += kMostStored) {
    const std::size_t nbytes = std::min(kMostStored, group.nbytes - at);
    Put(&out, first_of_block && at == 0 ? kStoredResetDictionary : kStored);
    PutBe16(&out, nbytes - 1);
    out = std::copy_n(group.data + at, nbytes, out);
  }
  return out;
}

}  // namespace

LiteralBits ChooseLiteralBits(Span raw, std::uint32_t element_nbytes) {
  if (element_nbytes == 2) return {3, 1};
  if (element_nbytes == 8) return {1, 3};
  if (element_nbytes == 1 && !HasPositions(raw)) return {3, 0};
  return {2, 2};
}

Lzma2LiteralEncoder::Lzma2LiteralEncoder()
    : model_(std::make_unique<LiteralModel>()),
      lanes_(UseAvx2() ? std::make_unique<LaneEncoder>() : nullptr) {}

std::size_t Lzma2LiteralEncoder::Bound(std::size_t raw_nbytes) {
  // No group is longer than an uncompressed one.
  const std::size_t groups = raw_nbytes / kGroupNbytes + 1;
  const std::size_t chunks = groups * (kGroupNbytes / kMostStored + 1);
  return raw_nbytes + chunks * kStoredHeaderNbytes + sizeof kEndMark;
}

// Codes group to codes_. Returns how many bytes its chunks would take. Returns the length of the
// group itself if a chunk's code is too long to be written.
std::size_t Lzma2LiteralEncoder::EncodeGroup(Span group, std::uint32_t previous, LiteralBits bits) {
  const std::size_t lanes = LanesIn(group.nbytes);
  if (lanes_ && group.nbytes == kGroupNbytes) {
    lanes_->Encode(group.data, previous, bits, model_.get(), &codes_);
  } else {
    for (std::size_t k = 0; k < lanes; ++k) {
      const Span lane = Lane(group, k);
      codes_.nbytes(k) = EncodeLane(lane, previous, bits, model_.get(), codes_.code(k));
      previous = lane.data[lane.nbytes - 1];
    }
  }
  std::size_t nbytes = 0;
  for (std::size_t k = 0; k < lanes; ++k) {
    if (codes_.nbytes(k) > kMostCode) return group.nbytes;
    nbytes += kCodedHeaderNbytes + codes_.nbytes(k);
  }
  return nbytes;
}

std::uint8_t* Lzma2LiteralEncoder::Encode(Span raw, LiteralBits bits, std::uint8_t* out) {
  model_->Reset();
  std::uint8_t control = kCodedResetDictionary;
  for (std::size_t at = 0; at < raw.nbytes; at += kGroupNbytes) {
    const Span group = {raw.data + at, std::min(kGroupNbytes, raw.nbytes - at)};
    const std::uint32_t previous = at == 0 ? 0 : group.data[-1];
    if (EncodeGroup(group, previous, bits) >= group.nbytes) {
      out = WriteStored(group, at == 0, out);
      // The decoder's model does not see uncompressed bytes, so ours has to forget them.
      model_->Reset();
      control = control >= kCodedNewProperties ? kCodedNewProperties : kCodedResetState;
      continue;
    }
    for (std::size_t k = 0; k < LanesIn(group.nbytes); ++k) {
      Put(&out, control);
      PutBe16(&out, Lane(group, k).nbytes - 1);
      PutBe16(&out, codes_.nbytes(k) - 1);
      if (control >= kCodedNewProperties) Put(&out, bits.position * 9 + bits.context);
      out = std::copy_n(codes_.code(k), codes_.nbytes(k), out);
      control = kCoded;
    }
  }
  Put(&out, kEndMark);
  return out;
}

}  // namespace pyckpt::xz
