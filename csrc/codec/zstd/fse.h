// Finite state entropy, the code that zstd uses for everything but literals (RFC 8878,
// section 4.1).
//
// A decoder reads a stream from its end, so symbols are written last to first. Several coders may
// share a stream.
#ifndef PYCKPT_CODEC_ZSTD_FSE_H_
#define PYCKPT_CODEC_ZSTD_FSE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/bit_writer.h"

namespace pyckpt::zstd {

// How often each symbol occurs, in units of one 2^log-th. kRare stands for less than one unit. The
// sum, with kRare as one, is 2^log.
struct FseDistribution {
  static constexpr std::int16_t kRare = -1;

  int log;
  std::vector<std::int16_t> shares;
};

// A distribution with this log that suits the counts. At least two of them must not be 0, and at
// most 2^log.
FseDistribution NormalizedShares(const std::vector<std::size_t>& counts, int log);

// The distribution as a header that decoders read (section 4.1.1).
void WriteDistribution(const FseDistribution& distribution, BitWriter* writer);

// What an encoder knows about a distribution.
class FseTable {
 public:
  explicit FseTable(const FseDistribution& distribution);

 private:
  friend class FseCoder;

  int log_;
  std::vector<std::uint32_t> counts_;  // of states, for each symbol
  std::vector<std::uint32_t> begins_;  // where each symbol's states begin in states_
  std::vector<std::uint16_t> states_;  // for each symbol in turn, ascending; from 2^log on
};

// Writes symbols of one table.
class FseCoder {
 public:
  // last is the symbol that decoders read last.
  FseCoder(const FseTable& table, std::size_t last);

  void Put(std::size_t symbol, BitWriter* writer);
  // Writes what decoders read first.
  void Finish(BitWriter* writer) const;

 private:
  const FseTable& table_;
  std::uint32_t state_;
};

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_FSE_H_
