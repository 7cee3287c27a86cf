#include "codec/xz/lane_feeder.h"

#include <algorithm>
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

std::size_t LoadBe(const std::uint8_t* p, std::size_t nbytes) {
  std::size_t value = 0;
  for (std::size_t i = 0; i < nbytes; ++i) value = value << 8 | p[i];
  return value;
}

}  // namespace

void LaneFeeder::Begin(LiteralTask* task, DecodingLane* lane) {
  task_ = task;
  lane_ = lane;
  at_ = task->code.data;
  end_ = at_ + task->code.nbytes;
  // A coded chunk with a lower control byte is an error, because it lacks a required reset.
  least_coded_ = kCodedResetDictionary;
  lane->out = task->out;
  lane->position = 0;
  Finish(task->slack_nbytes < kSlackNbytes ? State::kWrong : Next());
}

void LaneFeeder::Continue() {
  const bool is_complete = lane_->position == chunk_end_;
  // An encoder ends a code in this state. Damage is found before the lane reads beyond the slack.
  const bool is_exact = lane_->next == at_ && lane_->code == 0;
  if (lane_->has_match || lane_->next > at_ || (is_complete && !is_exact)) {
    Finish(State::kWrong);
  } else if (is_complete) {
    Finish(Next());
  }
}

std::size_t LaneFeeder::ready_nbytes() const {
  const auto readable = static_cast<std::size_t>(end_ - lane_->next) + task_->slack_nbytes;
  return std::min(chunk_end_ - lane_->position, readable / kMostCodePerByte - 1);
}

void LaneFeeder::Finish(State state) {
  if (state == State::kReady) return;
  task_->decoded = state == State::kEnd;
  lane_->out = nullptr;
}

LaneFeeder::State LaneFeeder::Next() {
  while (at_ != end_) {
    const unsigned control = *at_++;
    if (control == kEnd) {
      return at_ == end_ && lane_->position == task_->out_nbytes ? State::kEnd : State::kWrong;
    }
    if (control >= least_coded_) return BeginCoded(control) ? State::kReady : State::kWrong;
    if (control != kPlain && control != kPlainResetDictionary) return State::kWrong;
    if (!CopyPlain(control == kPlainResetDictionary)) return State::kWrong;
  }
  return State::kWrong;
}

bool LaneFeeder::CopyPlain(bool resets_dictionary) {
  constexpr std::size_t kHeaderNbytes = 2;
  const auto left = static_cast<std::size_t>(end_ - at_);
  if (resets_dictionary != (lane_->position == 0) || left < kHeaderNbytes) return false;
  const std::size_t nbytes = LoadBe(at_, kHeaderNbytes) + 1;
  if (nbytes > left - kHeaderNbytes || nbytes > task_->out_nbytes - lane_->position) return false;
  std::memcpy(lane_->out, at_ + kHeaderNbytes, nbytes);
  at_ += kHeaderNbytes + nbytes;
  lane_->out += nbytes;
  lane_->position += nbytes;
  least_coded_ = least_coded_ >= kCodedNewProperties ? kCodedNewProperties : kCodedResetState;
  return true;
}

bool LaneFeeder::BeginCoded(unsigned control) {
  const bool has_properties = control >= kCodedNewProperties;
  const std::size_t header_nbytes = has_properties ? 5 : 4;
  const auto left = static_cast<std::size_t>(end_ - at_);
  if ((control >= kCodedResetDictionary) != (lane_->position == 0) || left < header_nbytes) {
    return false;
  }
  const std::size_t nbytes = (std::size_t{control & 0x1F} << 16 | LoadBe(at_, 2)) + 1;
  const std::size_t code_nbytes = LoadBe(at_ + 2, 2) + 1;
  const std::uint8_t* code = at_ + header_nbytes;
  if (code_nbytes > left - header_nbytes || nbytes > task_->out_nbytes - lane_->position ||
      code_nbytes < kStartNbytes || code[0] != 0) {
    return false;
  }
  if (has_properties) {
    const unsigned properties = at_[4];
    const LiteralBits bits{properties % kContextEnd, properties / kContextEnd};
    // A larger value means that pb is not 0. Then positions matter for other decisions too.
    if (bits.position >= kPositionEnd || bits.context + bits.position > kMostShared) return false;
    lane_->bits = bits;
  }
  if (control >= kCodedResetState) {
    lane_->model.Reset();
    lane_->is_literal = kEven;
  }
  lane_->range = 0xFFFFFFFF;
  lane_->code = static_cast<std::uint32_t>(LoadBe(code + 1, sizeof lane_->code));
  lane_->next = code + kStartNbytes;
  lane_->previous = lane_->position == 0 ? 0 : lane_->out[-1];
  lane_->has_match = false;
  at_ = code + code_nbytes;
  chunk_end_ = lane_->position + nbytes;
  least_coded_ = kCoded;
  return true;
}

}  // namespace pyckpt::xz
