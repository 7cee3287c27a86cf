// Long repeats: the only matches worth having between floats. Zeros (neurons
// that are dead, moments that have not moved yet), one element again and again,
// rows that come twice, the headers between records. They cost next to nothing
// to find, because only a place in every thirty-two is looked up.
#ifndef PYCKPT_CODEC_REPEATS_H_
#define PYCKPT_CODEC_REPEATS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

// The bytes from begin up to end each equal the one that lies distance before.
struct Repeat {
  std::size_t begin;
  std::size_t end;
  std::size_t distance;
};

// Shorter ones are not looked for.
inline constexpr std::size_t kShortestRepeat = 16;

class RepeatFinder {
 public:
  static constexpr int kSlotBits = 12;  // of the table of words that are remembered

  // No distance is longer than max_distance. Finds runs of one 4-byte element
  // (or of shorter ones that make up 4 bytes), and what repeats at a distance
  // that 32 divides: all of 64 bytes and more (of 256, where the distance is below
  // 128), some that are shorter.
  explicit RepeatFinder(std::size_t max_distance) : max_distance_(max_distance) {}

  // All repeats, in order, without overlaps; valid until the next call. Looks for
  // none behind the first 32 MiB.
  const std::vector<Repeat>& Find(Span bytes);

 private:
  // Adds the longest repeat that holds the byte at. False if that is too short.
  bool Take(Span bytes, std::size_t at, std::size_t distance);
  // Where from at on there may be repeats, in whole groups of steps.
  std::size_t SkipNoise(Span bytes, std::size_t at);
  // Looks for a repeat in the step at. True if there is one.
  bool TakeRun(Span bytes, std::size_t at);
  bool TakeAgain(Span bytes, std::size_t at);

  std::size_t max_distance_;
  // Where words were seen last: the step's number, which is never 0, below a tag,
  // the part of the hash that tells words of one slot apart.
  std::array<std::uint32_t, std::size_t{1} << kSlotBits> places_{};
  std::vector<Repeat> repeats_;
};

// Goes through the bytes from begin to end: calls literals(begin, end) and
// match(begin, end, distance) in order. Parts of repeats that are shorter than
// shortest count as literals. *next is the first repeat that may reach behind
// begin; it moves on.
template <typename Literals, typename Match>
void SplitAtRepeats(std::size_t begin, std::size_t end, const std::vector<Repeat>& repeats,
                    std::size_t* next, std::size_t shortest, Literals literals, Match match) {
  std::size_t at = begin;
  for (; *next < repeats.size() && repeats[*next].begin < end; ++*next) {
    const Repeat& repeat = repeats[*next];
    const std::size_t from = repeat.begin < at ? at : repeat.begin;
    const std::size_t to = repeat.end < end ? repeat.end : end;
    if (to >= from + shortest) {
      if (at < from) literals(at, from);
      match(from, to, repeat.distance);
      at = to;
    }
    if (repeat.end > end) break;  // goes on behind
  }
  if (at < end) literals(at, end);
}

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_REPEATS_H_
