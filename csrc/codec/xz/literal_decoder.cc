#include "codec/xz/literal_decoder.h"

#include <cstring>

namespace pyckpt::xz {
namespace {

// LZMA2's control bytes. The coded ones are the first of a range each.
constexpr unsigned kEnd = 0;
constexpr unsigned kPlainResetDictionary = 1;
constexpr unsigned kPlain = 2;
constexpr unsigned kCoded = 0x80;
constexpr unsigned kCodedResetState = 0xA0;
constexpr unsigned kCodedNewProperties = 0xC0;
constexpr unsigned kCodedResetDictionary = 0xE0;

constexpr std::size_t kStartNbytes = 5;    // of a code: a zero byte and the first 32 bits
constexpr std::uint32_t kMostShared = 4;   // lc + lp
constexpr std::uint32_t kContextEnd = 9;   // one more than the largest lc
constexpr std::uint32_t kPositionEnd = 5;  // one more than the largest lp

std::uint64_t LoadBe(const std::uint8_t* p, std::size_t nbytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < nbytes; ++i) value = value << 8 | p[i];
  return value;
}

// LZMA's range decoder. The upper half of the window is what LZMA calls "code". The lower half has
// the bytes that are shifted into it next.
class RangeDecoder {
 public:
  explicit RangeDecoder(const std::uint8_t* code)
      : window_(LoadBe64(code + 1)), next_(code + 1 + sizeof window_) {}

  // Whether the decision is a 0. If it is a 1, the decoder's state is invalid from here on.
  [[gnu::always_inline]] bool IsZero(std::uint32_t probability) {
    const std::uint32_t bound = (range_ >> kProbabilityBits) * probability;
    range_ = bound;
    const bool is_zero = window_ >> 32 < bound;
    Normalize();
    return is_zero;
  }

  [[gnu::always_inline]] std::uint32_t Decide(std::uint16_t* probability) {
    const std::uint32_t p = *probability;
    const std::uint32_t bound = (range_ >> kProbabilityBits) * p;
    const std::uint64_t bound_in_window = std::uint64_t{bound} << 32;
    const std::uint32_t bit = window_ >= bound_in_window ? 1 : 0;
    const std::uint32_t mask = 0 - bit;
    window_ -= bound_in_window & (std::uint64_t{0} - bit);
    range_ = bound + ((range_ - 2 * bound) & mask);
    const int target = static_cast<int>(kTarget0 & ~mask);
    *probability = static_cast<std::uint16_t>(static_cast<int>(p) -
                                              ((static_cast<int>(p) - target) >> kAdaptation));
    Normalize();
    return bit;
  }

  // Call this after at most four decisions: the window has room for 32 bits' shift.
  [[gnu::always_inline]] void Refill() {
    window_ |= LoadBe64(next_) >> 1 >> (63 - shift_);
    next_ += shift_ >> 3;
    shift_ = 0;
  }

  // The first byte of code that is not in the window yet.
  const std::uint8_t* next() const { return next_; }
  // Whether the code ends exactly at end, in the state in which an encoder ends.
  bool EndsAt(const std::uint8_t* end) const {
    return window_ >> 32 == 0 && next_ - sizeof(std::uint32_t) == end;
  }

 private:
  [[gnu::always_inline]] void Normalize() {
    const unsigned shift = static_cast<unsigned>(range_ < kRenormalizeBelow) << 3;
    range_ <<= shift;
    window_ <<= shift;
    shift_ += shift;
  }

  std::uint64_t window_;
  const std::uint8_t* next_;
  std::uint32_t range_ = 0xFFFFFFFF;
  unsigned shift_ = 0;  // bits by which the window was shifted since it was full
};

}  // namespace

void Lzma2LiteralDecoder::ResetModel() {
  for (auto& tree : trees_) tree.fill(kEven);
  is_literal_ = kEven;
}

bool Lzma2LiteralDecoder::DecodeChunk(Span code, std::uint8_t* out, std::size_t position,
                                      std::size_t nbytes) {
  if (code.nbytes < kStartNbytes || code.data[0] != 0) return false;
  const std::uint8_t* end = code.data + code.nbytes;
  RangeDecoder decoder(code.data);
  std::uint32_t previous = position == 0 ? 0 : out[position - 1];
  std::uint32_t is_literal = is_literal_;
  for (const std::size_t stop = position + nbytes; position != stop; ++position) {
    if (decoder.next() > end + sizeof(std::uint32_t)) return false;
    std::uint16_t* tree = trees_[TreeIndex(bits_, position, previous)].data();
    if (!decoder.IsZero(is_literal)) return false;
    is_literal = NextIsLiteral(is_literal);
    std::uint32_t node = 1;
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; ++i) {
      node = 2 * node + decoder.Decide(tree + node);
      if (i == 1 || i == 4 || i == 7) decoder.Refill();
    }
    previous = node & 0xFF;
    out[position] = static_cast<std::uint8_t>(previous);
  }
  is_literal_ = is_literal;
  return decoder.EndsAt(end);
}

bool Lzma2LiteralDecoder::Decode(Span code, std::uint8_t* out, std::size_t out_nbytes) {
  const std::uint8_t* at = code.data;
  const std::uint8_t* const end = code.data + code.nbytes;
  std::size_t position = 0;
  // A coded chunk with a lower control byte is an error, because it lacks a required reset.
  unsigned least_coded = kCodedResetDictionary;
  while (at != end) {
    const unsigned control = *at++;
    const auto left = static_cast<std::size_t>(end - at);
    if (control == kEnd) return at == end && position == out_nbytes;
    if (control == kPlain || control == kPlainResetDictionary) {
      if ((control == kPlainResetDictionary) != (position == 0) || left < 2) return false;
      const std::size_t nbytes = LoadBe(at, 2) + 1;
      if (nbytes > left - 2 || nbytes > out_nbytes - position) return false;
      std::memcpy(out + position, at + 2, nbytes);
      at += 2 + nbytes;
      position += nbytes;
      least_coded = least_coded >= kCodedNewProperties ? kCodedNewProperties : kCodedResetState;
      continue;
    }
    const bool has_properties = control >= kCodedNewProperties;
    const std::size_t header_nbytes = has_properties ? 5 : 4;
    if (control < least_coded || (control >= kCodedResetDictionary) != (position == 0) ||
        left < header_nbytes) {
      return false;
    }
    const std::size_t nbytes = (std::size_t{control & 0x1F} << 16 | LoadBe(at, 2)) + 1;
    const std::size_t code_nbytes = LoadBe(at + 2, 2) + 1;
    if (has_properties) {
      bits_ = {at[4] % kContextEnd, at[4] / kContextEnd};
      // A larger value means that pb is not 0. Then positions matter for other decisions too.
      if (bits_.position >= kPositionEnd || bits_.context + bits_.position > kMostShared) {
        return false;
      }
    }
    at += header_nbytes;
    if (code_nbytes > left - header_nbytes || nbytes > out_nbytes - position) return false;
    if (control >= kCodedResetState) ResetModel();
    if (!DecodeChunk({at, code_nbytes}, out, position, nbytes)) return false;
    at += code_nbytes;
    position += nbytes;
    least_coded = kCoded;
  }
  return false;
}

}  // namespace pyckpt::xz
