// Finds long repeats, the only matches that pay between floats: zeros (dead neurons, moments that
// have not moved yet), one element many times, equal rows, the headers between records. Finding
// them is cheap, because only one place in every 32 bytes is looked up.
#ifndef PYCKPT_CODEC_REPEATS_H_
#define PYCKPT_CODEC_REPEATS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/runs.h"

namespace pyckpt {

// Each byte in [begin, end) equals the byte that is distance bytes before it.
struct Repeat {
  std::size_t begin;
  std::size_t end;
  std::size_t distance;
};

// Shorter repeats are not reported. In bytes.
inline constexpr std::size_t kShortestRepeat = 16;

class RepeatFinder {
 public:
  static constexpr int kSlotBits = 12;  // the table of remembered words has 2^kSlotBits slots

  // No reported distance exceeds max_distance bytes. Finds two kinds: runs of one element of 4
  // bytes (or of a shorter one that divides 4), and repeats at distances that are multiples of 32.
  // Of the second kind it looks for all repeats of 64 bytes and more (of 256 and more if the
  // distance is below 128), and finds some shorter ones.
  explicit RepeatFinder(std::size_t max_distance) : max_distance_(max_distance) {}

  // The repeats, in order and without overlaps. Valid until the next call. Searches the first 32
  // MiB only.
  const std::vector<Repeat>& Find(Span bytes);

  // The same for each of the runs of a chunk, with offsets in the chunk. No repeat lies in two
  // runs.
  const std::vector<Repeat>& FindInRuns(const std::vector<Run>& runs);

 private:
  // Adds the longest repeat with this distance that contains byte at. False if it is too short.
  bool Take(Span bytes, std::size_t at, std::size_t distance);
  // Skips groups of steps, from at on, in which there can be no repeats. Returns where the next
  // group that may have some begins, or where less than a group is left.
  std::size_t SkipNoise(Span bytes, std::size_t at);
  // Looks for a repeat in the step that begins at at. True if one was added.
  bool TakeRun(Span bytes, std::size_t at);
  bool TakeAgain(Span bytes, std::size_t at);

  std::size_t max_distance_;
  // Where each word was seen last. The low bits are the number of the step, which is never 0. The
  // high bits are a tag: a part of the hash that tells apart words with the same slot.
  std::array<std::uint32_t, std::size_t{1} << kSlotBits> places_{};
  std::vector<Repeat> repeats_;
  std::vector<Repeat> in_runs_;
};

// Splits the bytes from begin to end: calls literals(begin, end) and match(begin, end, distance) in
// order. Parts of repeats that are shorter than shortest count as literals. On entry, *next is the
// index of the first repeat that may end after begin; it is advanced.
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
    if (repeat.end > end) break;  // it continues after end
  }
  if (at < end) literals(at, end);
}

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_REPEATS_H_
