#include "codec/bzip2/inverse.h"

#include <algorithm>
#include <cstring>

namespace pyckpt::bzip2 {
namespace {

// There is a link for each rotation. Its low byte is the first byte of the rotation. The bits above
// are the rank of the rotation that begins one byte later. The link at which a segment starts also
// has the mark.
constexpr unsigned kByteBits = 8;
constexpr std::uint32_t kMark = std::uint32_t{1} << 31;

// Every step waits for memory, so several walks run side by side. When a walk ends, it continues
// with the next segment that has not been started.
constexpr std::uint32_t kWalks = 12;
constexpr std::uint32_t kMostSegments = 64;
constexpr std::uint32_t kSegmentNbytes = 4096;  // about the shortest average length
// The place of a segment in the output is known only when all segments are decoded. Until then its
// bytes are stored in pieces of this size.
constexpr std::uint32_t kPieceNbytes = 2048;

struct Walker {
  std::uint32_t rank = 0;
  std::uint32_t at = 0;  // in pieces_
  std::uint32_t full_pieces = 0;
  std::uint32_t segment = 0;
};

}  // namespace

void BlockUnsorter::Link(Span sorted, const std::array<std::uint32_t, 256>& counts) {
  links_.resize(sorted.nbytes);
  std::array<std::uint32_t, 256> next{};
  std::uint32_t sum = 0;
  for (std::size_t byte = 0; byte < next.size(); ++byte) {
    next[byte] = sum;
    std::fill_n(links_.begin() + sum, counts[byte], static_cast<std::uint32_t>(byte));
    sum += counts[byte];
  }
  for (std::size_t i = 0; i < sorted.nbytes; ++i) {
    links_[next[sorted.data[i]]++] |= static_cast<std::uint32_t>(i) << kByteBits;
  }
}

// The links are a permutation for any input. So each walk reaches a mark, at the latest its own
// start, and no two walks visit the same rank.
void BlockUnsorter::Walk() {
  std::uint32_t pieces = 0;
  std::uint32_t started = 0;
  const auto start = [&](Walker* walker) {
    Segment& segment = segments_[started];
    segment.first_piece = pieces++;
    const std::uint32_t link = links_[segment.start] & ~kMark;
    const std::uint32_t begin = segment.first_piece * kPieceNbytes;
    pieces_[begin] = static_cast<std::uint8_t>(link);
    *walker = {link >> kByteBits, begin + 1, 0, started++};
  };
  std::array<Walker, kWalks> walkers;
  std::uint32_t active = 0;
  while (active < kWalks && started < segments_.size()) start(&walkers[active++]);
  while (active != 0) {
    for (std::uint32_t i = 0; i < active; ++i) {
      Walker& walker = walkers[i];
      const std::uint32_t link = links_[walker.rank];
      if (link >= kMark) {
        Segment& segment = segments_[walker.segment];
        segment.nbytes = walker.full_pieces * kPieceNbytes + walker.at % kPieceNbytes;
        segment.next = walker.rank;
        if (started < segments_.size()) {
          start(&walker);
        } else {
          walker = walkers[--active];
        }
        continue;
      }
      pieces_[walker.at] = static_cast<std::uint8_t>(link);
      walker.rank = link >> kByteBits;
      if (++walker.at % kPieceNbytes == 0) {
        piece_after_[walker.at / kPieceNbytes - 1] = pieces;
        walker.at = pieces++ * kPieceNbytes;
        ++walker.full_pieces;
      }
    }
  }
}

void BlockUnsorter::Unsort(Span sorted, std::uint32_t origin,
                           const std::array<std::uint32_t, 256>& counts, std::uint8_t* out) {
  Link(sorted, counts);
  const auto nbytes = static_cast<std::uint32_t>(sorted.nbytes);
  const std::uint32_t wanted = std::clamp(nbytes / kSegmentNbytes, 1U, kMostSegments);
  const std::uint32_t stride = (nbytes + wanted - 1) / wanted;
  segments_.assign(1, {});
  segments_[0].start = origin;
  for (std::uint32_t rank = 0; rank < nbytes; rank += stride) {
    if (rank != origin) segments_.push_back({rank, 0, 0, 0});
  }
  for (const Segment& segment : segments_) links_[segment.start] |= kMark;
  // Every segment may have one piece that is not full.
  const std::size_t pieces = nbytes / kPieceNbytes + segments_.size();
  pieces_.resize(pieces * kPieceNbytes);
  piece_after_.resize(pieces);
  Walk();

  std::sort(segments_.begin(), segments_.end(),
            [](const Segment& a, const Segment& b) { return a.start < b.start; });
  std::uint32_t start = origin;
  for (std::uint32_t left = nbytes; left != 0;) {
    const auto segment =
        std::lower_bound(segments_.begin(), segments_.end(), start,
                         [](const Segment& a, std::uint32_t rank) { return a.start < rank; });
    std::uint32_t piece = segment->first_piece;
    // If the block repeats a shorter period, the same segments are copied again.
    for (std::uint32_t rest = std::min(segment->nbytes, left); rest != 0;) {
      const std::uint32_t n = std::min(rest, kPieceNbytes);
      std::memcpy(out, pieces_.data() + std::size_t{piece} * kPieceNbytes, n);
      out += n;
      left -= n;
      rest -= n;
      if (rest != 0) piece = piece_after_[piece];
    }
    start = segment->next;
  }
}

}  // namespace pyckpt::bzip2
