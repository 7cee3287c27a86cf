#include "codec/runs.h"

#include <cstring>
#include <iterator>

namespace pyckpt {

const std::vector<Run>& Gatherer::Gather(const Chunk& chunk, std::size_t in_place_nbytes) {
  runs_.clear();
  const auto small = [&](const Piece& piece) { return piece.span.nbytes < in_place_nbytes; };
  std::size_t at = 0;
  std::uint8_t* to = nullptr;
  for (auto piece = chunk.pieces.begin(); piece != chunk.pieces.end();) {
    auto end = std::next(piece);
    if (small(*piece)) end = std::find_if_not(end, chunk.pieces.end(), small);
    Run run = {at, piece->span};
    if (end - piece > 1) {
      if (to == nullptr) to = gathered_.Reserve(chunk.nbytes);
      run.bytes = {to, 0};
      for (; piece != end; ++piece) {
        std::memcpy(to, piece->span.data, piece->span.nbytes);
        to += piece->span.nbytes;
        run.bytes.nbytes += piece->span.nbytes;
      }
    }
    piece = end;
    at += run.bytes.nbytes;
    runs_.push_back(run);
  }
  return runs_;
}

Span Gatherer::Joined(std::size_t begin, std::size_t end) {
  std::vector<Span> parts;
  ForEachPart(runs_, begin, end, [&](Span bytes) { parts.push_back(bytes); });
  if (parts.size() == 1) return parts.front();
  std::uint8_t* to = joined_.Reserve(end - begin);
  for (const Span& part : parts) {
    std::memcpy(to, part.data, part.nbytes);
    to += part.nbytes;
  }
  return {joined_.data(), end - begin};
}

}  // namespace pyckpt
