#include "write/live_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/guarded_copy.h"
#include "base/parallel.h"

namespace pyckpt {
namespace {

constexpr std::uint64_t kPieceNbytes = std::uint64_t{1} << 20;  // a multiple of kAlignment
constexpr std::uint64_t kAlignment = 64;                        // of copies
// How much one thread copies at a time when it stages.
constexpr std::uint64_t kJobNbytes = 8 * kPieceNbytes;

}  // namespace

std::size_t LiveMemory::Add(Span memory) {
  Range range;
  range.memory = memory.data;
  range.nbytes = memory.nbytes;
  for (std::uint64_t at = 0; at < range.nbytes; at += kPieceNbytes) {
    range.pieces.push_back({std::min(kPieceNbytes, range.nbytes - at), nullptr});
  }
  unread_ += range.nbytes;
  ranges_.push_back(std::move(range));
  return ranges_.size() - 1;
}

void LiveMemory::Read(std::size_t range, std::uint64_t offset, std::size_t nbytes,
                      std::uint8_t* out) {
  while (nbytes != 0) {
    const std::size_t length =
        std::min<std::uint64_t>(nbytes, kPieceNbytes - offset % kPieceNbytes);
    ReadPiece(&ranges_[range], offset, length, out);
    offset += length;
    out += length;
    nbytes -= length;
  }
}

void LiveMemory::ReadPiece(Range* range, std::uint64_t offset, std::size_t nbytes,
                           std::uint8_t* out) {
  Piece& piece = range->pieces[offset / kPieceNbytes];
  std::unique_lock<std::mutex> lock(mutex_);
  if (piece.staged != nullptr) {
    const std::uint8_t* const from = piece.staged + offset % kPieceNbytes;
    lock.unlock();
    std::memcpy(out, from, nbytes);
    return;
  }
  ++readers_;
  lock.unlock();
  try {
    GuardedCopy(out, range->memory + offset, nbytes);
  } catch (...) {
    lock.lock();
    --readers_;
    left_.notify_all();
    throw;
  }
  lock.lock();
  --readers_;
  piece.unread -= nbytes;
  // If the piece was staged in the meantime, Stage() has subtracted these bytes already.
  if (piece.staged == nullptr) unread_ -= nbytes;
  left_.notify_all();
}

std::uint64_t LiveMemory::staging_nbytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::uint64_t nbytes = 0;
  for (const Range& range : ranges_) {
    for (std::size_t i = 0; i < range.pieces.size(); ++i) {
      if (range.pieces[i].unread == 0 || range.pieces[i].staged != nullptr) continue;
      const std::uint64_t length = std::min(kPieceNbytes, range.nbytes - i * kPieceNbytes);
      nbytes += length + PaddingTo(length, kAlignment);
    }
  }
  return nbytes;
}

void LiveMemory::Stage(std::uint8_t* buffer, int threads) {
  // Neighbouring pieces are copied in one job, to neighbouring memory.
  struct Job {
    Range* range;
    std::uint64_t offset;
    std::size_t nbytes;
    std::uint8_t* to;
  };
  std::vector<Job> jobs;
  std::unique_lock<std::mutex> lock(mutex_);
  for (Range& range : ranges_) {
    bool goes_on = false;
    for (std::size_t i = 0; i < range.pieces.size(); ++i) {
      if (range.pieces[i].unread == 0 || range.pieces[i].staged != nullptr) {
        goes_on = false;
        continue;
      }
      const std::uint64_t offset = i * kPieceNbytes;
      const std::size_t length = std::min(kPieceNbytes, range.nbytes - offset);
      if (goes_on && jobs.back().nbytes < kJobNbytes) {
        jobs.back().nbytes += length;
      } else {
        jobs.push_back({&range, offset, length, buffer});
      }
      buffer += length + PaddingTo(length, kAlignment);
      goes_on = true;
    }
  }
  lock.unlock();

  Task copy = [&jobs](std::size_t index) {
    const Job& job = jobs[index];
    std::memcpy(job.to, job.range->memory + job.offset, job.nbytes);
  };
  RunParallel(
      jobs.size(), threads, [&copy] { return copy; }, [] {});

  lock.lock();
  for (const Job& job : jobs) {
    for (std::uint64_t at = 0; at < job.nbytes; at += kPieceNbytes) {
      Piece& piece = job.range->pieces[(job.offset + at) / kPieceNbytes];
      if (piece.staged != nullptr) continue;  // by another Stage
      unread_ -= piece.unread;
      piece.staged = job.to + at;
    }
  }
  left_.wait(lock, [this] { return readers_ == 0; });
}

bool LiveMemory::released() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return unread_ == 0 && readers_ == 0;
}

LiveSource::LiveSource(std::shared_ptr<LiveMemory> memory, std::size_t range)
    : memory_(std::move(memory)), range_(range) {}

void LiveSource::Read(std::uint64_t offset, std::size_t nbytes, std::uint8_t* out) {
  memory_->Read(range_, offset, nbytes, out);
}

}  // namespace pyckpt
