#include "write/ordered_sink.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/thread_group.h"

namespace pyckpt {
namespace {

constexpr std::chrono::milliseconds kPollEvery{50};

}  // namespace

void OrderedSink::Open(std::uint64_t /*most_nbytes*/) {
  gathered_.reserve(kGatherNbytes);  // fails now if memory lacks
}

void OrderedSink::Run(const Work& work, const Poll& poll) {
  std::exception_ptr thrown;
  const auto run = [&work, &thrown](const Poll& work_poll) {
    try {
      work(work_poll);
    } catch (...) {
      thrown = std::current_exception();
    }
  };
  attended_ = true;
  ThreadGroup worker;
  const std::size_t started = worker.Start(1, [this, &run] {
    run([this] { CheckStopped(); });
    const Lock lock(mutex_);
    ended_ = true;
    attendee_.notify_one();
  });
  if (started == 1) {
    Attend(poll);
    worker.Join();
  } else {  // the system has no more threads
    attended_ = false;
    run(poll);
  }
  // An exception of Python may lead to what holds this sink, so that neither would ever be freed.
  error_ = nullptr;
  if (thrown) std::rethrow_exception(thrown);
}

// Writes what workers hand over, until work has ended.
void OrderedSink::Attend(const Poll& poll) {
  auto next_poll = std::chrono::steady_clock::now() + kPollEvery;
  Lock lock(mutex_);
  while (!ended_) {
    attendee_.wait_until(lock, next_poll, [this] { return ended_ || piece_ != nullptr; });
    if (piece_ != nullptr) WriteOut(&lock);
    const auto now = std::chrono::steady_clock::now();
    if (now < next_poll) continue;
    next_poll = now + kPollEvery;
    if (!error_) Do(poll, &lock);
  }
}

void OrderedSink::WriteAt(std::uint64_t offset, const std::vector<Span>& spans) {
  const bool is_empty =
      std::all_of(spans.begin(), spans.end(), [](const Span& s) { return s.nbytes == 0; });
  if (is_empty) return;  // its turn is that of the bytes behind it
  Lock lock(mutex_);
  workers_.wait(lock, [&] { return next_ == offset || error_; });
  if (error_) std::rethrow_exception(error_);
  piece_ = &spans;
  if (attended_) {
    attendee_.notify_one();
    workers_.wait(lock, [&] { return piece_ != &spans; });
  } else {
    WriteOut(&lock);
  }
  if (error_) std::rethrow_exception(error_);
}

void OrderedSink::Stop() noexcept {
  const std::exception_ptr stopped = Error::Stopped();
  const Lock lock(mutex_);
  Fail(stopped);
}

// Writes the piece. The lock is held at the call and on return.
void OrderedSink::WriteOut(Lock* lock) {
  const std::vector<Span>& spans = *piece_;
  writing_ = true;
  Do([&] { WriteAll(spans); }, lock);
  writing_ = false;
  piece_ = nullptr;
  for (const Span& span : spans) next_ += span.nbytes;
  workers_.notify_all();
}

// Does something without the lock, and keeps its error.
void OrderedSink::Do(const std::function<void()>& something, Lock* lock) {
  lock->unlock();
  std::exception_ptr error;
  try {
    something();
  } catch (...) {
    error = std::current_exception();
  }
  lock->lock();
  if (error) Fail(std::move(error));
}

// Small spans are gathered: each call of write_ has its price.
void OrderedSink::WriteAll(const std::vector<Span>& spans) {
  for (const Span& span : spans) {
    if (gathered_.size() + span.nbytes > kGatherNbytes) WriteGathered();
    if (span.nbytes > kGatherNbytes / 4) {
      WriteGathered();
      write_(span);
    } else {
      gathered_.insert(gathered_.end(), span.data, span.data + span.nbytes);
    }
  }
  WriteGathered();
}

void OrderedSink::WriteGathered() {
  if (!gathered_.empty()) write_({gathered_.data(), gathered_.size()});
  gathered_.clear();
}

void OrderedSink::CheckStopped() {
  const Lock lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

// Under the lock. A piece that nobody writes yet is given back.
void OrderedSink::Fail(std::exception_ptr error) noexcept {
  if (!error_) error_ = std::move(error);
  if (!writing_) piece_ = nullptr;
  workers_.notify_all();
}

}  // namespace pyckpt
