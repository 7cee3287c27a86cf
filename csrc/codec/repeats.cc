#include "codec/repeats.h"

#include <algorithm>
#include <utility>

namespace pyckpt {
namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);
constexpr std::size_t kStep = 32;  // one place in this many bytes is looked up
constexpr std::size_t kGroup = 4 * kStep;
constexpr std::uint32_t kNumberMask = (std::uint32_t{1} << 20) - 1;  // of a step's number

using Element = std::uint32_t;
constexpr std::size_t kRunDistance = sizeof(Element);

Element ElementAt(const std::uint8_t* p) {
  Element element = 0;
  std::memcpy(&element, p, sizeof element);
  return element;
}

using Elements = Element __attribute__((vector_size(16)));

// False if no element of the group equals the element before it.
bool MayHaveRuns(const std::uint8_t* group) {
  Elements equal{};
  for (std::size_t i = 0; i < kGroup; i += sizeof(Elements)) {
    Elements now{};
    Elements before{};
    std::memcpy(&now, group + i, sizeof now);
    std::memcpy(&before, group + i - kRunDistance, sizeof before);
    equal |= Elements(now == before);
  }
  std::array<std::uint64_t, 2> any{};
  std::memcpy(any.data(), &equal, sizeof any);
  return (any[0] | any[1]) != 0;
}

// The slot that remembers a word, and the value stored there.
struct Place {
  std::size_t slot;
  std::uint32_t value;
};

Place PlaceOf(const std::uint8_t* data, std::size_t at) {
  const std::uint64_t hash = LoadLe64(data + at) * 0x9E3779B97F4A7C15U;
  const auto tag = static_cast<std::uint32_t>(hash >> RepeatFinder::kSlotBits) & ~kNumberMask;
  return {hash >> (64 - RepeatFinder::kSlotBits), tag | static_cast<std::uint32_t>(at / kStep)};
}

bool SameTag(std::uint32_t a, std::uint32_t b) { return (a ^ b) <= kNumberMask; }

}  // namespace

bool RepeatFinder::Take(Span bytes, std::size_t at, std::size_t distance) {
  const std::uint8_t* p = bytes.data;
  const std::size_t free = repeats_.empty() ? 0 : repeats_.back().end;
  const std::size_t lowest = free > distance ? free : distance;
  if (at < lowest) return false;
  std::size_t begin = at;
  while (begin > lowest && p[begin - 1] == p[begin - 1 - distance]) --begin;
  std::size_t end = at;
  while (end + kWord <= bytes.nbytes && LoadLe64(p + end) == LoadLe64(p + end - distance)) {
    end += kWord;
  }
  while (end < bytes.nbytes && p[end] == p[end - distance]) ++end;
  if (end - begin < kShortestRepeat) return false;
  repeats_.push_back({begin, end, distance});
  return true;
}

bool RepeatFinder::TakeRun(Span bytes, std::size_t at) {
  for (std::size_t i = at; i < at + kStep; i += kRunDistance) {
    if (ElementAt(bytes.data + i) == ElementAt(bytes.data + i - kRunDistance) &&
        Take(bytes, i, kRunDistance)) {
      return true;
    }
  }
  return false;
}

bool RepeatFinder::TakeAgain(Span bytes, std::size_t at) {
  const Place now = PlaceOf(bytes.data, at);
  const std::uint32_t before = std::exchange(places_[now.slot], now.value);
  const std::size_t seen = (before & kNumberMask) * kStep;
  if (seen == 0 || !SameTag(before, now.value) || at - seen > max_distance_) return false;
  return LoadLe64(bytes.data + at) == LoadLe64(bytes.data + seen) && Take(bytes, at, at - seen);
}

std::size_t RepeatFinder::SkipNoise(Span bytes, std::size_t at) {
  for (; at + kGroup <= bytes.nbytes; at += kGroup) {
    std::array<Place, kGroup / kStep> now{};
    bool seen = MayHaveRuns(bytes.data + at);
    for (std::size_t i = 0; i < now.size(); ++i) {
      now[i] = PlaceOf(bytes.data, at + i * kStep);
      // Compares only the tags. A branch on the distance could not be predicted.
      seen |= SameTag(places_[now[i].slot], now[i].value);
    }
    if (seen) break;
    for (const Place& place : now) places_[place.slot] = place.value;
  }
  return at;
}

const std::vector<Repeat>& RepeatFinder::Find(Span bytes) {
  repeats_.clear();
  places_.fill(0);
  bytes.nbytes = std::min(bytes.nbytes, (kNumberMask + std::size_t{1}) * kStep);
  for (std::size_t at = SkipNoise(bytes, kStep); at + kStep <= bytes.nbytes;) {
    const std::size_t stop = at + kGroup;
    while (at < stop && at + kStep <= bytes.nbytes) {
      const bool taken = TakeRun(bytes, at) || TakeAgain(bytes, at);
      at += kStep;
      // A repeat may end within a step. The rest of that step is looked at again.
      if (taken && repeats_.back().end > at) at = repeats_.back().end / kStep * kStep;
    }
    at = SkipNoise(bytes, at);
  }
  return repeats_;
}

const std::vector<Repeat>& RepeatFinder::FindInRuns(const std::vector<Run>& runs) {
  in_runs_.clear();
  for (const Run& run : runs) {
    for (const Repeat& repeat : Find(run.bytes)) {
      in_runs_.push_back({run.begin + repeat.begin, run.begin + repeat.end, repeat.distance});
    }
  }
  return in_runs_;
}

}  // namespace pyckpt
