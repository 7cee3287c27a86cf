#include "codec/zstd/literal_code.h"

#include <algorithm>
#include <array>

#include "codec/bit_writer.h"
#include "codec/literal_writer.h"
#include "codec/zstd/format.h"
#include "codec/zstd/fse.h"

namespace pyckpt::zstd {
namespace {

// Short codes are written faster. They are taken where they cost next to nothing.
std::vector<std::uint8_t> Lengths(const std::vector<std::uint64_t>& frequencies) {
  constexpr std::uint64_t kNextToNothing = 2048;
  const HuffmanTree tree(frequencies);
  std::vector<std::uint8_t> best = tree.Lengths(kLongestLiteralCode);
  std::vector<std::uint8_t> fast = tree.Lengths(kShortCode);
  const std::uint64_t least = CodedNbits(frequencies, best);
  return CodedNbits(frequencies, fast) > least + least / kNextToNothing ? best : fast;
}

// The longest codes come first, equally long ones in the order of their symbols.
std::vector<HuffmanCode> CodesOf(const std::vector<std::uint8_t>& lengths) {
  std::array<unsigned, kLongestLiteralCode + 1> next{};
  for (const std::uint8_t length : lengths) ++next[length];
  unsigned first = 0;
  for (std::size_t length = next.size() - 1; length > 0; --length) {
    const unsigned count = next[length];
    next[length] = first;
    first = (first + count) / 2;
  }
  std::vector<HuffmanCode> codes;
  codes.reserve(lengths.size());
  for (const std::uint8_t length : lengths) {
    codes.push_back({static_cast<std::uint16_t>(next[length]++), length});
  }
  return codes;
}

// The weights of all symbols but the last, whose weight follows from the others.
std::vector<std::uint8_t> WeightsOf(const std::vector<std::uint8_t>& lengths) {
  const std::uint8_t longest = *std::max_element(lengths.begin(), lengths.end());
  std::vector<std::uint8_t> weights;
  weights.reserve(lengths.size());
  for (const std::uint8_t length : lengths) {
    weights.push_back(static_cast<std::uint8_t>(longest + 1 - length));
  }
  weights.pop_back();
  return weights;
}

// The weights coded by two coders in turn (section 4.2.1.2), behind their size. Empty if the format
// does not allow it.
std::vector<std::uint8_t> Describe(const std::vector<std::uint8_t>& weights) {
  constexpr int kLog = 6;
  constexpr std::size_t kMostNbytes = 127;
  std::vector<std::size_t> counts(*std::max_element(weights.begin(), weights.end()) + 1U);
  for (const std::uint8_t weight : weights) ++counts[weight];
  if (counts[weights.front()] == weights.size()) return {};  // there must be two different ones
  const FseDistribution distribution = NormalizedShares(counts, kLog);
  const FseTable table(distribution);

  std::vector<std::uint8_t> out(1 + kByteValues * kLog / 8 + kByteValues + BitWriter::kSlackNbytes);
  BitWriter header(&out[1]);
  WriteDistribution(distribution, &header);
  BitWriter writer(header.Align());
  std::size_t left = weights.size();
  std::array<FseCoder, 2> coders = {FseCoder(table, weights[(left - 1) & ~std::size_t{1}]),
                                    FseCoder(table, weights[(left - 2) | std::size_t{1}])};
  for (left -= 2; left > 0; --left) coders[(left - 1) % 2].Put(weights[left - 1], &writer);
  coders[1].Finish(&writer);
  coders[0].Finish(&writer);
  writer.Put(1, 1);
  const auto nbytes = static_cast<std::size_t>(writer.Align() - &out[1]);
  if (nbytes > kMostNbytes) return {};
  out[0] = static_cast<std::uint8_t>(nbytes);
  out.resize(1 + nbytes);
  return out;
}

}  // namespace

LiteralCode::LiteralCode(const BlockPlan& plan) {
  const double scale = plan.sample_nbytes == 0 ? 0
                                               : static_cast<double>(plan.literal_nbytes) /
                                                     static_cast<double>(plan.sample_nbytes);
  std::vector<std::uint64_t> frequencies(kByteValues);
  for (std::size_t s = 0; s < kByteValues; ++s) {
    // Literals that the sample missed may occur, so they get a code.
    frequencies[s] = std::max<std::uint64_t>(static_cast<std::uint64_t>(plan.sample[s] * scale), 1);
  }
  const std::vector<std::uint8_t> lengths = Lengths(frequencies);
  codes_ = CodesOf(lengths);
  description_ = Describe(WeightsOf(lengths));
  nbytes_ = CodedNbits(frequencies, lengths) / 8 + description_.size();
}

}  // namespace pyckpt::zstd
