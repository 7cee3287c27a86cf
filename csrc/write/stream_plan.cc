#include "write/stream_plan.h"

#include <algorithm>
#include <utility>

#include "base/crc32.h"
#include "base/error.h"

namespace pyckpt {

StreamPlan::ChecksumId StreamPlan::NewChecksum() {
  checksums_.emplace_back();
  return checksums_.size() - 1;
}

void StreamPlan::Add(Segment segment, std::uint64_t nbytes) {
  if (nbytes == 0) return;
  segment.offset = nbytes_;
  segment.nbytes = nbytes;
  segments_.push_back(std::move(segment));
  nbytes_ += nbytes;
}

void StreamPlan::AddBytes(std::string bytes, ChecksumId checksum) {
  Segment s;
  s.owned = std::make_unique<std::string>(std::move(bytes));
  s.memory = AsSpan(*s.owned).data;
  s.checksum = checksum;
  const std::uint64_t nbytes = s.owned->size();
  Add(std::move(s), nbytes);
}

void StreamPlan::AddZeros(std::uint64_t nbytes) { AddBytes(std::string(nbytes, '\0')); }

void StreamPlan::AddMemory(Span memory, std::uint32_t element_nbytes, ChecksumId checksum) {
  Segment s;
  s.memory = memory.data;
  s.element_nbytes = element_nbytes;
  s.checksum = checksum;
  Add(std::move(s), memory.nbytes);
}

void StreamPlan::AddSource(std::shared_ptr<Source> source, std::uint64_t nbytes,
                           std::uint32_t element_nbytes, ChecksumId checksum) {
  Segment s;
  s.source = std::move(source);
  s.element_nbytes = element_nbytes;
  s.checksum = checksum;
  Add(std::move(s), nbytes);
}

void StreamPlan::AddDeferred(std::uint64_t nbytes, std::function<std::string()> make) {
  Segment s;
  s.owned = std::make_unique<std::string>(nbytes, '\0');
  s.memory = AsSpan(*s.owned).data;
  s.deferred = true;
  s.make = std::move(make);
  Add(std::move(s), nbytes);
}

void StreamPlan::Read(std::uint64_t offset, std::size_t nbytes, Chunk* chunk) const {
  chunk->offset = offset;
  chunk->nbytes = nbytes;
  chunk->element_nbytes = 1;
  chunk->deferred = false;
  chunk->pieces.clear();
  const std::uint64_t end = offset + nbytes;
  const auto after = [](std::uint64_t at, const Segment& s) { return at < s.offset; };
  const auto first = std::upper_bound(segments_.begin(), segments_.end(), offset, after) - 1;

  std::size_t scratch_nbytes = 0;
  for (auto s = first; s != segments_.end() && s->offset < end; ++s) {
    if (s->source) {
      scratch_nbytes += std::min(end, s->offset + s->nbytes) - std::max(offset, s->offset);
    }
  }
  std::uint8_t* scratch = chunk->scratch.Reserve(scratch_nbytes);

  std::uint64_t widest = 0;
  for (auto s = first; s != segments_.end() && s->offset < end; ++s) {
    const std::uint64_t begin = std::max(offset, s->offset) - s->offset;
    const std::size_t length = std::min(end, s->offset + s->nbytes) - s->offset - begin;
    Piece piece;
    piece.segment = static_cast<std::size_t>(s - segments_.begin());
    if (s->source) {
      s->source->Read(begin, length, scratch);
      piece.span = {scratch, length};
      scratch += length;
    } else {
      piece.span = {s->memory + begin, length};
    }
    chunk->deferred |= s->deferred;
    if (s->checksum != kNoChecksum) piece.crc = Crc32(piece.span);
    if (length > widest) {
      widest = length;
      chunk->element_nbytes = s->element_nbytes;
    }
    chunk->pieces.push_back(piece);
  }
}

void StreamPlan::Join(const Chunk& chunk) {
  for (const Piece& piece : chunk.pieces) {
    Segment& s = segments_[piece.segment];
    if (s.checksum != kNoChecksum) {
      Checksum& c = checksums_[s.checksum];
      c.crc = c.started ? Crc32Combine(c.crc, *piece.crc, piece.span.nbytes) : *piece.crc;
      c.started = true;
    }
    if (s.make) {
      const std::string made = s.make();
      if (made.size() != s.nbytes) {
        throw Error(ErrorKind::kCodec, "deferred bytes differ from their planned size");
      }
      // In place: pieces point to these bytes already.
      std::copy(made.begin(), made.end(), s.owned->begin());
      s.make = nullptr;
    }
  }
}

}  // namespace pyckpt
