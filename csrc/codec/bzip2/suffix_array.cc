#include "codec/bzip2/suffix_array.h"

#include <algorithm>
#include <cstddef>

namespace pyckpt::bzip2 {
namespace {

// Induced sorting (SA-IS: Nong, Zhang and Chan, 2009). A suffix is of type S if it is smaller than
// the suffix that begins one symbol later, else of type L. An LMS suffix is of type S, and the
// suffix before it in the text is of type L. Once the LMS suffixes are sorted, two scans induce the
// order of all: left to right for L, right to left for S. The LMS suffixes are sorted in three
// steps. The same two scans sort the pieces of text between them. Each piece is named by its rank.
// The suffixes of the string of names, which has at most half the length, are sorted recursively.
//
// During a scan, an entry's sign says whether this scan places its predecessor in the text: it does
// for a plain entry, and does not for a complemented one. Position 0 has no predecessor, so 0 also
// means "empty".
template <typename Symbol>
class Sorter {
 public:
  Sorter(const Symbol* text, std::int32_t n, std::int32_t symbols, std::int32_t* out)
      : text_(text), n_(n), out_(out), counts_(symbols), next_(symbols) {
    for (std::int32_t i = 0; i < n; ++i) ++counts_[text[i]];
  }

  void Run() {
    if (n_ == 1) {
      out_[0] = 0;
      return;
    }
    std::fill(out_, out_ + n_, 0);
    const std::int32_t pieces = PlaceLms();
    if (pieces > 1) {
      SortPieces();
      SortLms(pieces);
      PlaceSortedLms(pieces);
    }
    SortAll();
  }

 private:
  // Entries point to random places in the text, so the text is prefetched this many entries ahead.
  static constexpr std::int32_t kAhead = 16;
  void Prefetch(std::int32_t entry) const { __builtin_prefetch(text_ + (entry < 0 ? 0 : entry)); }

  void ToBucketStarts() {
    std::int32_t sum = 0;
    for (std::size_t c = 0; c < counts_.size(); ++c) {
      next_[c] = sum;
      sum += counts_[c];
    }
  }

  void ToBucketEnds() {
    std::int32_t sum = 0;
    for (std::size_t c = 0; c < counts_.size(); ++c) {
      sum += counts_[c];
      next_[c] = sum;
    }
  }

  // Calls visit(position) for every LMS position, last first.
  template <typename Visit>
  void ForEachLms(Visit visit) const {
    bool next_is_s = false;
    for (std::int32_t i = n_ - 2; i >= 0; --i) {
      const bool is_s = text_[i] < text_[i + 1] || (text_[i] == text_[i + 1] && next_is_s);
      if (next_is_s && !is_s) visit(i + 1);
      next_is_s = is_s;
    }
  }

  // Puts the LMS positions into their buckets, in any order within a bucket. Returns how many there
  // are.
  std::int32_t PlaceLms() {
    ToBucketEnds();
    std::int32_t pieces = 0;
    ForEachLms([&](std::int32_t at) {
      out_[--next_[text_[at]]] = at;
      ++pieces;
    });
    return pieces;
  }

  void InsertL(std::int32_t at) {
    const Symbol c = text_[at];
    const bool before_is_s = at > 0 && text_[at - 1] < c;
    out_[next_[c]++] = before_is_s ? ~at : at;
  }

  void InsertS(std::int32_t at) {
    const Symbol c = text_[at];
    const bool before_is_l = at > 0 && text_[at - 1] > c;
    out_[--next_[c]] = before_is_l ? ~at : at;
  }

  // Leaves only the LMS positions, as complements, in the order of their pieces.
  void SortPieces() {
    ToBucketStarts();
    InsertL(n_ - 1);
    for (std::int32_t i = 0; i < n_; ++i) {
      if (i + kAhead < n_) Prefetch(out_[i + kAhead]);
      const std::int32_t at = out_[i];
      out_[i] = at < 0 ? ~at : 0;
      if (at > 0) InsertL(at - 1);
    }
    ToBucketEnds();
    for (std::int32_t i = n_ - 1; i >= 0; --i) {
      if (i >= kAhead) Prefetch(out_[i - kAhead]);
      const std::int32_t at = out_[i];
      if (at <= 0) continue;
      out_[i] = 0;
      InsertS(at - 1);
    }
  }

  // Leaves the order of all suffixes.
  void SortAll() {
    ToBucketStarts();
    InsertL(n_ - 1);
    for (std::int32_t i = 0; i < n_; ++i) {
      if (i + kAhead < n_) Prefetch(out_[i + kAhead]);
      const std::int32_t at = out_[i];
      out_[i] = ~at;
      if (at > 0) InsertL(at - 1);
    }
    ToBucketEnds();
    for (std::int32_t i = n_ - 1; i >= 0; --i) {
      if (i >= kAhead) Prefetch(out_[i - kAhead]);
      const std::int32_t at = out_[i];
      if (at > 0) {
        InsertS(at - 1);
      } else if (at < 0) {
        out_[i] = ~at;
      }
    }
  }

  // From the sorted pieces to the sorted LMS suffixes, in the first entries.
  void SortLms(std::int32_t pieces) {
    std::int32_t found = 0;
    for (std::int32_t i = 0; i < n_; ++i) {
      if (out_[i] < 0) out_[found++] = ~out_[i];
    }
    // LMS positions are at least two apart, so half a position is a unique index.
    std::int32_t* by_position = out_ + pieces;
    const std::int32_t names = NamePieces(pieces, by_position);
    std::int32_t* reduced = out_ + n_ - pieces;
    for (std::int32_t from = (n_ - 1) / 2, to = pieces; to > 0; --from) {
      if (by_position[from] != 0) reduced[--to] = by_position[from] - 1;
    }
    if (names < pieces) {
      Sorter<std::int32_t>(reduced, pieces, names, out_).Run();
    } else {
      for (std::int32_t i = 0; i < pieces; ++i) out_[reduced[i]] = i;
    }
    std::int32_t to = pieces;
    ForEachLms([&](std::int32_t at) { reduced[--to] = at; });
    for (std::int32_t i = 0; i < pieces; ++i) out_[i] = reduced[out_[i]];
  }

  // Names the pieces 1, 2, ... in sorted order. Equal pieces get the same name. Returns the number
  // of names.
  std::int32_t NamePieces(std::int32_t pieces, std::int32_t* by_position) const {
    std::fill(by_position, out_ + n_, 0);
    // First store the lengths. A piece includes the LMS symbol that ends it. Only the last piece
    // ends with the text.
    constexpr std::int32_t kLast = -1;
    std::int32_t end = n_;
    ForEachLms([&](std::int32_t at) {
      by_position[at / 2] = end == n_ ? kLast : end - at + 1;
      end = at;
    });
    std::int32_t names = 0;
    std::int32_t before = 0;
    std::int32_t length_before = kLast;
    for (std::int32_t i = 0; i < pieces; ++i) {
      const std::int32_t at = out_[i];
      const std::int32_t length = by_position[at / 2];
      const bool same = length != kLast && length == length_before &&
                        std::equal(text_ + at, text_ + at + length, text_ + before);
      if (!same) ++names;
      by_position[at / 2] = names;
      before = at;
      length_before = length;
    }
    return names;
  }

  void PlaceSortedLms(std::int32_t pieces) {
    std::fill(out_ + pieces, out_ + n_, 0);
    ToBucketEnds();
    // Going from the last to the first, no entry is overwritten before it is moved.
    for (std::int32_t i = pieces - 1; i >= 0; --i) {
      const std::int32_t at = out_[i];
      out_[i] = 0;
      out_[--next_[text_[at]]] = at;
    }
  }

  const Symbol* text_;
  std::int32_t n_;
  std::int32_t* out_;
  std::vector<std::int32_t> counts_;
  std::vector<std::int32_t> next_;  // where the next entry of each bucket goes
};

}  // namespace

void BuildSuffixArray(Span text, std::vector<std::int32_t>* suffixes) {
  suffixes->resize(text.nbytes);
  if (text.nbytes == 0) return;
  Sorter<std::uint8_t>(text.data, static_cast<std::int32_t>(text.nbytes), 256, suffixes->data())
      .Run();
}

}  // namespace pyckpt::bzip2
