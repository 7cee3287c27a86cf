// Memory that is written to a file while its owner goes on using it. The owner calls Stage
// before it changes the memory. If it frees the memory instead, reads throw (base/guarded_copy.h).
//
//   workers: Read, in place ───────────────┐
//   owner:   Stage ─▶ copies what has not been read yet, and waits for workers that
//            read in place ─▶ may change the memory
//   workers: Read, from the copies ────────┘
//
// Ranges are cut into pieces. Each piece counts its unread bytes. Every byte is read once. Stage
// does not write to the memory either, so workers need not stop for it.
#ifndef PYCKPT_WRITE_LIVE_MEMORY_H_
#define PYCKPT_WRITE_LIVE_MEMORY_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/bytes.h"
#include "write/stream_plan.h"

namespace pyckpt {

// Thread-safe except Add.
class LiveMemory {
 public:
  // Adds a range and returns its index. Call it before anything is read. The memory should stay
  // valid until released().
  std::size_t Add(Span memory);

  // Copies [offset, offset + nbytes) of a range to out. Throws kSystem with EFAULT if the memory is
  // gone.
  void Read(std::size_t range, std::uint64_t offset, std::size_t nbytes, std::uint8_t* out);

  // The size of the buffer that Stage needs now. It only falls.
  std::uint64_t staging_nbytes() const;

  // Copies what is unread to buffer, which has staging_nbytes() bytes and must stay valid until the
  // last read. After Stage has returned, no read touches the ranges. The memory must be valid. A
  // second Stage, which may run at the same time, copies what the first
  // one has not marked as copied yet, to a buffer of its own.
  void Stage(std::uint8_t* buffer, int threads);

  // True if the owner may change the ranges: every byte is read or staged.
  bool released() const;

 private:
  struct Piece {
    std::uint64_t unread = 0;              // bytes
    const std::uint8_t* staged = nullptr;  // the copy of the whole piece
  };
  struct Range {
    const std::uint8_t* memory = nullptr;
    std::uint64_t nbytes = 0;
    std::vector<Piece> pieces;  // guarded by mutex_
  };

  void ReadPiece(Range* range, std::uint64_t offset, std::size_t nbytes, std::uint8_t* out);

  std::vector<Range> ranges_;  // once reading has begun, only the pieces change

  mutable std::mutex mutex_;  // guards the pieces and all below
  std::condition_variable left_;
  std::uint64_t unread_ = 0;   // bytes, in all pieces without a copy
  std::uint64_t readers_ = 0;  // calls that read a range in place now
};

// One range as a source of the stream.
class LiveSource final : public Source {
 public:
  LiveSource(std::shared_ptr<LiveMemory> memory, std::size_t range);
  void Read(std::uint64_t offset, std::size_t nbytes, std::uint8_t* out) override;

 private:
  std::shared_ptr<LiveMemory> memory_;
  std::size_t range_;
};

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_LIVE_MEMORY_H_
