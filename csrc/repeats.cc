#include "repeats.h"

namespace pyckpt {
namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);
constexpr std::size_t kStep = 32;  // one place in so many is looked up

using Element = std::uint32_t;
constexpr std::size_t kRunDistance = sizeof(Element);

Element ElementAt(const std::uint8_t* p) {
  Element element = 0;
  std::memcpy(&element, p, sizeof element);
  return element;
}

using Elements = Element __attribute__((vector_size(16)));

Elements ElementsAt(const std::uint8_t* p) {
  Elements elements{};
  std::memcpy(&elements, p, sizeof elements);
  return elements;
}

// Whether any element of a step is the one before it.
bool AnyAgain(const std::uint8_t* p) {
  static_assert(kStep == 2 * sizeof(Elements));
  const std::uint8_t* q = p + sizeof(Elements);
  const auto equal = (ElementsAt(p) == ElementsAt(p - kRunDistance)) |
                     (ElementsAt(q) == ElementsAt(q - kRunDistance));
  std::array<std::uint64_t, 2> any{};
  std::memcpy(any.data(), &equal, sizeof any);
  return (any[0] | any[1]) != 0;
}

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

std::size_t RepeatFinder::DistanceAt(Span bytes, std::size_t at) {
  const std::uint64_t word = LoadLe64(bytes.data + at);
  std::uint32_t& place = places_[word * 0x9E3779B97F4A7C15U >> (64 - kHashBits)];
  const std::size_t distance = place == 0 ? 0 : at + 1 - place;
  place = static_cast<std::uint32_t>(at + 1);
  if (distance == 0 || distance > max_distance_) return 0;
  return word == LoadLe64(bytes.data + at - distance) ? distance : 0;
}

const std::vector<Repeat>& RepeatFinder::Find(Span bytes) {
  repeats_.clear();
  places_.fill(0);
  if (bytes.nbytes < kStep) return repeats_;
  const std::size_t last = bytes.nbytes - kStep;
  for (std::size_t at = kStep; at <= last;) {
    bool taken = false;
    if (AnyAgain(bytes.data + at)) {
      for (std::size_t i = 0; i < kStep && !taken; i += kRunDistance) {
        taken = ElementAt(bytes.data + at + i) == ElementAt(bytes.data + at + i - kRunDistance) &&
                Take(bytes, at + i, kRunDistance);
      }
    }
    if (!taken) {
      const std::size_t distance = DistanceAt(bytes, at);
      taken = distance != 0 && Take(bytes, at, distance);
    }
    // A repeat may end within a step, whose rest is looked at again.
    at = taken && repeats_.back().end > at + kStep ? repeats_.back().end / kStep * kStep
                                                   : at + kStep;
  }
  return repeats_;
}

}  // namespace pyckpt
