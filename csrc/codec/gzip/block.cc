#include "codec/gzip/block.h"

#include "codec/gzip/format.h"

namespace pyckpt::gzip {

std::size_t DynamicBlocksBound(std::size_t raw_nbytes, std::size_t blocks) {
  constexpr std::size_t kHeaderNbytes = 512;
  return raw_nbytes * kLongestCode / 8 + (blocks + 1) * kHeaderNbytes;
}

void BlockWriter::Write(const std::vector<Run>& runs, const BlockPlan& plan, const BlockCode& code,
                        const std::vector<Repeat>& repeats, std::size_t* next, BitWriter* writer) {
  code.WriteHeader(writer);
  literals_.Prepare(code.literals(), plan.literal_nbytes);
  SplitAtRepeats(
      plan.begin, plan.end, repeats, next, kShortestMatch,
      [&](std::size_t from, std::size_t to) {
        ForEachPart(runs, from, to, [&](Span bytes) { literals_.Write(bytes, writer); });
      },
      [&](std::size_t from, std::size_t to, std::size_t distance) {
        SplitMatch(to - from, [&](std::size_t n) { code.PutMatch(n, distance, writer); });
      });
  code.PutEnd(writer);
}

}  // namespace pyckpt::gzip
