// A stream in segments of equal size, for targets that want few, large, aligned writes: files past
// the page cache; parts of an upload.
//
//   Add: copy code to its place in a segment ─▶ the segment is full ─▶ a writer writes it
//        (many threads)                                                 (threads of its own)
//
// Writers wait for the device most of the time, so they take no CPU from those who add. They are
// started when they are needed: a stream that fits into one segment is written by Finish. If the
// system has no more threads, whoever fills a segment writes it.
//
// Memory: up to kSegments x kSegmentNbytes, whatever the stream's size. Add waits when all segments
// are full.
#ifndef PYCKPT_WRITE_SEGMENT_WRITER_H_
#define PYCKPT_WRITE_SEGMENT_WRITER_H_

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

#include "base/anonymous_map.h"
#include "base/bytes.h"
#include "base/thread_group.h"

namespace pyckpt {

class SegmentWriter {
 public:
  static constexpr std::size_t kSegmentNbytes = std::size_t{2} << 20;
  static constexpr std::size_t kSegments = 8;
  static constexpr std::size_t kWriters = 4;
  // Segments lie at such addresses.
  static constexpr std::size_t kMemoryAlignment = 4096;

  // Writes one segment at its offset in the stream, or throws. Several threads call it at once, in
  // any order of the offsets.
  using Write = std::function<void(std::uint64_t offset, Span segment)>;

  // The last segment is padded with zeros to a multiple of alignment, which divides
  // kMemoryAlignment.
  SegmentWriter(std::size_t alignment, Write write);
  SegmentWriter(const SegmentWriter&) = delete;
  SegmentWriter& operator=(const SegmentWriter&) = delete;
  // Stops.
  ~SegmentWriter();

  // Adds all spans one after another at offset. Thread-safe. The calls must cover the stream
  // without a gap, and begin in its order: a call may wait for bytes in front of its own. Throws
  // the first error of a write, or that of Stop.
  void Add(std::uint64_t offset, const std::vector<Span>& spans);

  // Call it after the last Add. Writes what is left, and returns when all is written. Throws the
  // first error of a write.
  void Finish();

  // Calls of Add that wait, and all later ones, throw kSystem with ECANCELED. Thread-safe.
  void Stop() noexcept;

 private:
  // The room for segments number, number + kSegments and so on.
  struct Room {
    std::uint64_t number = 0;      // of the segment that it is for now
    std::size_t filled = 0;        // bytes
    std::condition_variable turn;  // the number has changed
  };
  using Lock = std::unique_lock<std::mutex>;

  std::uint8_t* Enter(std::uint64_t number);
  void Leave(std::uint64_t number, std::size_t added);
  void WriteSoon(Room* room, Lock* lock);
  void WriteOut(Room* room, Lock* lock);
  void Work();
  void Fail(std::exception_ptr error) noexcept;

  const std::size_t alignment_;
  const Write write_;
  AnonymousMap memory_;

  std::mutex mutex_;  // guards all below
  std::array<Room, kSegments> rooms_;
  std::deque<Room*> full_;
  std::condition_variable work_;     // for writers
  std::condition_variable written_;  // for Finish
  std::size_t started_ = 0;          // writers
  std::size_t idle_ = 0;             // writers that wait
  std::size_t writing_ = 0;          // segments
  bool ended_ = false;
  std::exception_ptr error_;
  ThreadGroup writers_;
};

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_SEGMENT_WRITER_H_
