#include "write/segment_writer.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "base/error.h"

namespace pyckpt {

SegmentWriter::SegmentWriter(std::size_t alignment, Write write)
    : alignment_(alignment), write_(std::move(write)) {
  if (!memory_.Grow(kSegments * kSegmentNbytes)) throw std::bad_alloc();
  for (std::size_t i = 0; i < kSegments; ++i) rooms_[i].number = i;
}

SegmentWriter::~SegmentWriter() {
  Stop();
  writers_.Join();
}

void SegmentWriter::Add(std::uint64_t offset, const std::vector<Span>& spans) {
  std::uint8_t* room = nullptr;  // where offset lies, once it is entered
  std::size_t added = 0;         // bytes since then
  for (const Span& span : spans) {
    for (std::size_t done = 0; done < span.nbytes;) {
      const std::uint64_t number = offset / kSegmentNbytes;
      const std::size_t at = offset % kSegmentNbytes;
      if (room == nullptr) room = Enter(number);
      const std::size_t n = std::min(span.nbytes - done, kSegmentNbytes - at);
      std::memcpy(room + at, span.data + done, n);
      done += n;
      offset += n;
      added += n;
      if (at + n == kSegmentNbytes) {
        Leave(number, std::exchange(added, 0));
        room = nullptr;
      }
    }
  }
  if (room != nullptr) Leave(offset / kSegmentNbytes, added);
}

void SegmentWriter::Finish() {
  Lock lock(mutex_);
  written_.wait(lock, [this] { return (full_.empty() && writing_ == 0) || error_; });
  // Only the last segment of the stream can be in part filled.
  const auto last =
      std::find_if(rooms_.begin(), rooms_.end(), [](const Room& room) { return room.filled != 0; });
  if (last != rooms_.end() && !error_) {
    const std::size_t padding = PaddingTo(last->filled, alignment_);
    std::memset(memory_.data() + (last - rooms_.begin()) * kSegmentNbytes + last->filled, 0,
                padding);
    last->filled += padding;
    WriteOut(&*last, &lock);
  }
  ended_ = true;
  work_.notify_all();
  if (error_) std::rethrow_exception(error_);
}

void SegmentWriter::Stop() noexcept {
  const std::exception_ptr stopped = Error::Stopped();
  const Lock lock(mutex_);
  Fail(stopped);
}

// Waits until the segment of this number has room, and returns where its bytes go.
std::uint8_t* SegmentWriter::Enter(std::uint64_t number) {
  const std::size_t index = number % kSegments;
  Lock lock(mutex_);
  rooms_[index].turn.wait(lock, [&] { return rooms_[index].number == number || error_; });
  if (error_) std::rethrow_exception(error_);
  // One segment for a small file would be more than it needs.
  if (number == 1 && rooms_[index].filled == 0) {
    PreferHugePages(memory_.data(), kSegments * kSegmentNbytes);
  }
  return memory_.data() + index * kSegmentNbytes;
}

// The bytes of a call of Add are in the segment.
void SegmentWriter::Leave(std::uint64_t number, std::size_t added) {
  Room& room = rooms_[number % kSegments];
  Lock lock(mutex_);
  room.filled += added;
  if (room.filled == kSegmentNbytes) WriteSoon(&room, &lock);
}

void SegmentWriter::WriteSoon(Room* room, Lock* lock) {
  if (idle_ <= full_.size() && started_ < kWriters) {
    started_ = writers_.Start(started_ + 1, [this] { Work(); });
  }
  if (started_ == 0) {
    WriteOut(room, lock);
  } else {
    full_.push_back(room);
    work_.notify_one();
  }
}

// The lock is held at the call and on return.
void SegmentWriter::WriteOut(Room* room, Lock* lock) {
  ++writing_;
  lock->unlock();
  std::exception_ptr error;
  try {
    const auto index = static_cast<std::size_t>(room - rooms_.data());
    write_(room->number * kSegmentNbytes, {memory_.data() + index * kSegmentNbytes, room->filled});
  } catch (...) {
    error = std::current_exception();
  }
  lock->lock();
  --writing_;
  room->filled = 0;
  room->number += kSegments;
  room->turn.notify_all();
  if (error) Fail(error);
  if (full_.empty() && writing_ == 0) written_.notify_all();
}

void SegmentWriter::Work() {
  Lock lock(mutex_);
  while (!error_) {
    if (!full_.empty()) {
      Room* room = full_.front();
      full_.pop_front();
      WriteOut(room, &lock);
    } else if (ended_) {
      return;
    } else {
      ++idle_;
      work_.wait(lock);
      --idle_;
    }
  }
}

// Under the lock.
void SegmentWriter::Fail(std::exception_ptr error) noexcept {
  if (!error_) error_ = std::move(error);
  for (Room& room : rooms_) room.turn.notify_all();
  work_.notify_all();
  written_.notify_all();
}

}  // namespace pyckpt
