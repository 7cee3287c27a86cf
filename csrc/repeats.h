// Long repeats: the only matches worth having between floats. Zeros (neurons
// that are dead, moments that have not moved yet), one element again and again,
// rows that come twice, the headers between records. They cost next to nothing
// to find, because only a place in every thirty-two is looked up.
#ifndef PYCKPT_REPEATS_H_
#define PYCKPT_REPEATS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bytes.h"

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
  // No distance is longer than max_distance. Finds runs of one 4-byte element
  // (or of shorter ones that make up 4 bytes), and what repeats at a distance
  // that 32 divides: all of 64 bytes and more, some that are shorter.
  explicit RepeatFinder(std::size_t max_distance) : max_distance_(max_distance) {}

  // All repeats, in order, without overlaps; valid until the next call.
  const std::vector<Repeat>& Find(Span bytes);

 private:
  static constexpr int kHashBits = 12;

  // Adds the longest repeat that holds the byte at. False if that is too short.
  bool Take(Span bytes, std::size_t at, std::size_t distance);
  // How far back eight bytes were seen last; 0 if that is not known.
  std::size_t DistanceAt(Span bytes, std::size_t at);

  std::size_t max_distance_;
  std::array<std::uint32_t, std::size_t{1} << kHashBits> places_{};  // plus one; 0 is "none"
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

#endif  // PYCKPT_REPEATS_H_
