#include "codec/xz/decoding_turns.h"

#include <array>
#include <cstdint>

#include "base/bytes.h"

namespace pyckpt::xz {
namespace {

// The decisions of literals are hard to predict, so none of them is a branch here.
//
// LZMA's range decoder. The upper half of the window is the code. The lower half has the bytes that
// are shifted into it next.
class RangeDecoder {
 public:
  RangeDecoder() = default;
  explicit RangeDecoder(const DecodingLane& lane)
      : window_(std::uint64_t{lane.code} << 32 | LoadBe64(lane.next) >> 32),
        next_(lane.next + sizeof lane.code),
        range_(lane.range) {}

  void Save(DecodingLane* lane) const {
    lane->code = static_cast<std::uint32_t>(window_ >> 32);
    lane->next = next_ - sizeof lane->code;
    lane->range = range_;
  }

  // Takes a decision that should be a 0. Returns 0 if it is, else 1. After a 1 the state is
  // invalid.
  [[gnu::always_inline]] std::uint32_t TakeZero(std::uint32_t probability) {
    range_ = (range_ >> kProbabilityBits) * probability;
    const std::uint32_t bit = window_ >> 32 >= range_ ? 1 : 0;
    Normalize();
    return bit;
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

 private:
  [[gnu::always_inline]] void Normalize() {
    const unsigned shift = static_cast<unsigned>(range_ < kRenormalizeBelow) << 3;
    range_ <<= shift;
    window_ <<= shift;
    shift_ += shift;
  }

  std::uint64_t window_ = 0;
  const std::uint8_t* next_ = nullptr;  // the first byte that is not in the window yet
  std::uint32_t range_ = 0;
  unsigned shift_ = 0;  // bits by which the window was shifted since it was full
};

// A byte that is being decoded: the subtree of its next decision, and the node in it.
struct Walk {
  std::size_t index = 0;
  std::uint16_t* subtree = nullptr;
  std::uint32_t node = 1;

  template <typename Subtrees>
  [[gnu::always_inline]] void Enter(std::size_t at, Subtrees* subtrees) {
    index = at;
    subtree = (*subtrees)[at].data();
    node = 1;
  }
};

template <std::size_t kLanes>
using Coders = std::array<RangeDecoder, kLanes>;
template <std::size_t kLanes>
using Walks = std::array<Walk, kLanes>;

// The walks' next kDecisions decisions. Before the last one, or after it in the third subtree, the
// windows are refilled.
template <std::size_t kDecisions, std::size_t kLanes>
[[gnu::always_inline]] inline void Decide(Coders<kLanes>* coders, Walks<kLanes>* walks) {
#pragma GCC unroll 3
  for (std::size_t d = 0; d < kDecisions; ++d) {
    for (std::size_t k = 0; k < kLanes; ++k) {
      Walk& walk = (*walks)[k];
      walk.node = 2 * walk.node + (*coders)[k].Decide(walk.subtree + walk.node);
    }
    if (d != 1) continue;
    for (RangeDecoder& coder : *coders) coder.Refill();
  }
}

template <std::size_t kLanes>
void DecodeLanes(DecodingLane* const* lanes, std::size_t nbytes) {
  Coders<kLanes> coders;
  Walks<kLanes> walks;
  std::array<std::uint32_t, kLanes> previous{};
  std::array<std::uint32_t, kLanes> is_literal{};
  std::array<std::uint32_t, kLanes> has_match{};
  for (std::size_t k = 0; k < kLanes; ++k) {
    coders[k] = RangeDecoder(*lanes[k]);
    previous[k] = lanes[k]->previous;
    is_literal[k] = lanes[k]->is_literal;
  }
  for (std::size_t i = 0; i < nbytes; ++i) {
    for (std::size_t k = 0; k < kLanes; ++k) {
      DecodingLane& lane = *lanes[k];
      walks[k].Enter(TreeIndex(lane.bits, lane.position + i, previous[k]), &lane.model.upper);
      has_match[k] |= coders[k].TakeZero(is_literal[k]);
      is_literal[k] = NextIsLiteral(is_literal[k]);
    }
    Decide<3>(&coders, &walks);
    for (std::size_t k = 0; k < kLanes; ++k) {
      walks[k].Enter(8 * walks[k].index + (walks[k].node & 7), &lanes[k]->model.middle);
    }
    Decide<3>(&coders, &walks);
    for (std::size_t k = 0; k < kLanes; ++k) {
      walks[k].Enter(8 * walks[k].index + (walks[k].node & 7), &lanes[k]->model.lower);
    }
    Decide<2>(&coders, &walks);
    for (std::size_t k = 0; k < kLanes; ++k) {
      previous[k] = (4 * walks[k].index + (walks[k].node & 3)) & 0xFF;
      lanes[k]->out[i] = static_cast<std::uint8_t>(previous[k]);
    }
  }
  for (std::size_t k = 0; k < kLanes; ++k) {
    DecodingLane& lane = *lanes[k];
    coders[k].Save(&lane);
    lane.out += nbytes;
    lane.position += nbytes;
    lane.previous = previous[k];
    lane.is_literal = is_literal[k];
    lane.has_match |= has_match[k] != 0;
  }
}

}  // namespace

void DecodeInTurn(DecodingLane* const* lanes, std::size_t count, std::size_t nbytes) {
  static_assert(kMostInTurn == 4);
  switch (count) {
    case 1:
      return DecodeLanes<1>(lanes, nbytes);
    case 2:
      return DecodeLanes<2>(lanes, nbytes);
    case 3:
      return DecodeLanes<3>(lanes, nbytes);
    default:
      return DecodeLanes<4>(lanes, nbytes);
  }
}

}  // namespace pyckpt::xz
