#include "codec/xz/literal_decoder.h"

#include <algorithm>
#include <cstdint>

#include "base/cpu.h"
#include "codec/xz/decoding_turns.h"

namespace pyckpt::xz {

Lzma2LiteralDecoder::Lzma2LiteralDecoder()
    : lanes_(std::make_unique<std::array<DecodingLane, kLanes>>()) {}

std::size_t Lzma2LiteralDecoder::most_in_turn() { return UseAvx2() ? kVectorLanes : kMostInTurn; }

void Lzma2LiteralDecoder::Decode(std::vector<LiteralTask>* tasks) {
  const std::size_t most = most_in_turn();
  auto next = tasks->begin();
  for (;;) {
    std::size_t nbytes = SIZE_MAX;
    for (std::size_t k = 0; k < most; ++k) {
      DecodingLane& lane = (*lanes_)[k];
      while (lane.out == nullptr && next != tasks->end()) feeders_[k].Begin(&*next++, &lane);
      if (lane.out != nullptr) nbytes = std::min(nbytes, feeders_[k].ready_nbytes());
    }
    if (nbytes == SIZE_MAX) return;
    Step(nbytes);
    for (std::size_t k = 0; k < most; ++k) {
      if ((*lanes_)[k].out != nullptr) feeders_[k].Continue();
    }
  }
}

void Lzma2LiteralDecoder::Step(std::size_t nbytes) {
  std::array<DecodingLane*, kLanes> busy{};
  std::size_t count = 0;
  for (DecodingLane& lane : *lanes_) {
    if (lane.out != nullptr) busy[count++] = &lane;
  }
  if (count >= kFewestInVectors && UseAvx2()) {
    DecodeInVectors(lanes_.get(), nbytes);
    return;
  }
  for (std::size_t k = 0; k < count; k += kMostInTurn) {
    DecodeInTurn(busy.data() + k, std::min(kMostInTurn, count - k), nbytes);
  }
}

}  // namespace pyckpt::xz
