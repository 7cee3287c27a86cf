#include "codec/bzip2/rle.h"

#include <algorithm>
#include <cstring>

namespace pyckpt::bzip2 {
namespace {

constexpr std::size_t kShortestRun = 4;
constexpr std::size_t kLongestRun = 255;
constexpr std::size_t kRunCost = kShortestRun + 1;

// The first place in [from, to) where four equal bytes begin, or to. If two neighbours differ, no
// run can begin at the first of them or shortly before. So comparing from the right allows the
// longest steps.
std::size_t FindRun(Span raw, std::size_t from, std::size_t to) {
  const std::uint8_t* p = raw.data;
  std::size_t at = from;
  while (at < to && at + kShortestRun <= raw.nbytes) {
    if (p[at + 2] != p[at + 3]) {
      at += 3;
    } else if (p[at + 1] != p[at + 2]) {
      at += 2;
    } else if (p[at] != p[at + 1]) {
      at += 1;
    } else {
      return at;
    }
  }
  return to;
}

// How many bytes from at on are equal; at most kLongestRun.
std::size_t RunLength(Span raw, std::size_t at) {
  const std::size_t most = std::min(kLongestRun, raw.nbytes - at);
  const std::uint8_t* p = raw.data + at;
  const std::uint64_t equal = std::uint64_t{0x0101010101010101} * p[0];
  std::size_t run = 0;
  for (; run + sizeof equal <= most; run += sizeof equal) {
    std::uint64_t word = 0;
    std::memcpy(&word, p + run, sizeof word);
    if (word != equal) break;
  }
  while (run < most && p[run] == p[0]) ++run;
  return run;
}

}  // namespace

CodedRuns EncodeRuns(Span raw, std::size_t limit, std::uint8_t* out) {
  std::size_t at = 0;
  std::size_t coded = 0;
  while (at < raw.nbytes) {
    const std::size_t to = at + std::min(raw.nbytes - at, limit - coded);
    const std::size_t run_at = FindRun(raw, at, to);
    std::memcpy(out + coded, raw.data + at, run_at - at);
    coded += run_at - at;
    at = run_at;
    if (run_at == to || coded + kRunCost > limit) break;
    const std::size_t run = RunLength(raw, at);
    std::memset(out + coded, raw.data[at], kShortestRun);
    out[coded + kShortestRun] = static_cast<std::uint8_t>(run - kShortestRun);
    coded += kRunCost;
    at += run;
  }
  return {at, coded};
}

}  // namespace pyckpt::bzip2
