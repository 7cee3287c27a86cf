#include "codec/gzip/block_code.h"

#include <algorithm>
#include <numeric>

#include "codec/gzip/format.h"
#include "codec/literal_writer.h"

namespace pyckpt::gzip {
namespace {

constexpr int kLongestLengthsCode = 7;  // in bits, of the code for the code lengths

// Code lengths for literals, end of block and match lengths. If almost all symbols are literals,
// the tree is made of them and of one leaf that stands for all other symbols. Then the limit of
// kShortCode applies only to literals, which are what the fast loop writes. Usually the limit costs
// almost nothing. The leaf costs less than two bits for each of the other symbols.
std::vector<std::uint8_t> LiteralLengths(const std::vector<std::uint64_t>& frequencies) {
  constexpr std::uint64_t kRare = 1024;
  constexpr std::uint64_t kNextToNothing = 2048;
  const auto rest = frequencies.begin() + kLiterals;
  std::vector<std::uint64_t> tops(frequencies.begin(), rest);
  const std::uint64_t literals = std::accumulate(tops.begin(), tops.end(), std::uint64_t{0});
  tops.push_back(std::accumulate(rest, frequencies.end(), std::uint64_t{0}));
  if (literals < kPairsWorthwhile || tops.back() > literals / kRare) {
    return HuffmanTree(frequencies).Lengths(kLongestCode);
  }
  const HuffmanTree tree(tops);
  std::vector<std::uint8_t> lengths = tree.Lengths(kShortCode);
  const std::uint64_t least = CodedNbits(tops, tree.Lengths(kLongestCode));
  if (CodedNbits(tops, lengths) > least + least / kNextToNothing) {
    return HuffmanTree(frequencies).Lengths(kLongestCode);
  }
  const int stem = lengths.back();
  lengths.pop_back();
  const std::vector<std::uint64_t> others(rest, frequencies.end());
  if (tops.back() == others.front()) {  // no matches: the leaf is end of block alone
    lengths.push_back(static_cast<std::uint8_t>(stem));
  } else {
    for (const std::uint8_t twig : HuffmanTree(others).Lengths(kLongest - stem)) {
      lengths.push_back(static_cast<std::uint8_t>(twig == 0 ? 0 : stem + twig));
    }
  }
  lengths.resize(frequencies.size());
  return lengths;
}

}  // namespace

BlockCode::BlockCode(const BlockPlan& plan, const std::vector<Repeat>& repeats, std::size_t next) {
  std::vector<std::uint64_t> match_lengths(kLengthSymbols);
  std::vector<std::uint64_t> distances(kDistanceSymbols);
  SplitAtRepeats(
      plan.begin, plan.end, repeats, &next, kShortestMatch, [](std::size_t, std::size_t) {},
      [&](std::size_t from, std::size_t to, std::size_t distance) {
        SplitMatch(to - from, [&](std::size_t nbytes) {
          ++match_lengths[LengthSymbol(nbytes)];
          ++distances[DistanceSymbol(distance)];
        });
      });
  while (distances.size() > 1 && distances.back() == 0) distances.pop_back();
  const bool has_matches = distances.back() != 0;
  // Matches are counted, but literals are sampled. Scale the sample to all literals.
  const double scale = plan.sample_nbytes == 0 ? 0
                                               : static_cast<double>(plan.literal_nbytes) /
                                                     static_cast<double>(plan.sample_nbytes);
  std::vector<std::uint64_t> frequencies(kEndOfBlock + 1);
  for (std::size_t s = 0; s < kLiterals; ++s) {
    frequencies[s] = static_cast<std::uint64_t>(plan.sample[s] * scale);
  }
  frequencies[kEndOfBlock] = 1;
  if (has_matches) {
    frequencies.insert(frequencies.end(), match_lengths.begin(), match_lengths.end());
  }
  // Literals that the sample missed may occur, so they get a code. They do not count in nbits_.
  std::vector<std::uint64_t> possible = frequencies;
  for (std::size_t s = 0; s < kLiterals; ++s) {
    possible[s] = std::max<std::uint64_t>(possible[s], plan.literal_nbytes != 0);
  }
  literals_ = CanonicalCodes(LiteralLengths(possible));
  distances_ = CanonicalCodes(HuffmanTree(distances).Lengths(kLongestCode));

  std::vector<std::uint8_t> code_lengths;
  for (const auto* codes : {&literals_, &distances_}) {
    for (const HuffmanCode& c : *codes) code_lengths.push_back(static_cast<std::uint8_t>(c.length));
  }
  length_runs_ = RunsOf(code_lengths);
  std::vector<std::uint64_t> counts(kLengthCodeOrder.size());
  for (const LengthRun& run : length_runs_) ++counts[run.symbol];
  lengths_ = CanonicalCodes(HuffmanTree(counts).Lengths(kLongestLengthsCode));

  nbits_ = 3 + 5 + 5 + 4 + 3 * kLengthCodeOrder.size();
  for (const LengthRun& run : length_runs_) {
    nbits_ += std::uint64_t{lengths_[run.symbol].length} + run.extra_nbits;
  }
  for (std::size_t s = 0; s < frequencies.size(); ++s) {
    nbits_ += frequencies[s] * literals_[s].length;
  }
  for (std::size_t s = 0; s < kLengthSymbols; ++s) {
    nbits_ += match_lengths[s] * LengthExtraBits(s);
  }
  for (std::size_t s = 0; s < distances.size(); ++s) {
    nbits_ += distances[s] * (distances_[s].length + DistanceExtraBits(s));
  }
}

// Symbol 16 repeats the previous length; 17 and 18 are runs of zeros (RFC 1951, section 3.2.7).
std::vector<BlockCode::LengthRun> BlockCode::RunsOf(const std::vector<std::uint8_t>& lengths) {
  std::vector<LengthRun> runs;
  for (auto at = lengths.begin(); at != lengths.end();) {
    const std::uint8_t length = *at;
    const auto end = std::find_if(at, lengths.end(), [=](std::uint8_t l) { return l != length; });
    auto left = static_cast<std::size_t>(end - at);
    at = end;
    const auto take = [&](std::uint8_t symbol, std::size_t fewest, std::size_t most,
                          std::uint8_t extra_nbits) {
      while (left >= fewest) {
        const std::size_t n = std::min(left, most);
        runs.push_back({symbol, static_cast<std::uint8_t>(n - fewest), extra_nbits});
        left -= n;
      }
    };
    if (length == 0) {
      take(18, 11, 138, 7);
      take(17, 3, 10, 3);
    } else {
      runs.push_back({length, 0, 0});
      --left;
      take(16, 3, 6, 2);
    }
    for (; left > 0; --left) runs.push_back({length, 0, 0});
  }
  return runs;
}

void BlockCode::WriteHeader(BitWriter* writer) const {
  writer->Put(0, 1);  // not the last block
  writer->Put(2, 2);  // dynamic code
  writer->Put(literals_.size() - 257, 5);
  writer->Put(distances_.size() - 1, 5);
  writer->Put(kLengthCodeOrder.size() - 4, 4);
  for (const std::size_t s : kLengthCodeOrder) writer->Put(lengths_[s].length, 3);
  for (const LengthRun& run : length_runs_) {
    writer->Put(lengths_[run.symbol].bits, lengths_[run.symbol].length);
    writer->Put(run.extra, run.extra_nbits);
  }
}

void BlockCode::PutMatch(std::size_t nbytes, std::size_t distance, BitWriter* writer) const {
  const std::size_t l = LengthSymbol(nbytes);
  writer->Put(literals_[257 + l].bits, literals_[257 + l].length);
  writer->Put(nbytes - kLengthBase[l], LengthExtraBits(l));
  const std::size_t d = DistanceSymbol(distance);
  writer->Put(distances_[d].bits, distances_[d].length);
  writer->Put(distance - kDistanceBase[d], DistanceExtraBits(d));
}

void BlockCode::PutEnd(BitWriter* writer) const {
  writer->Put(literals_[kEndOfBlock].bits, literals_[kEndOfBlock].length);
}

}  // namespace pyckpt::gzip
