// A sink for what takes bytes in their order alone, and on one thread: a file object of Python, a
// pipe.
//
//   WriteAt: wait for the turn ─▶ hand the spans over ─▶ wait until they are written
//            (workers)                    │
//                                         ▼
//   Run:                               Write      (the thread that saves)
//
// So a signal interrupts a write that blocks, and the file object sees the thread that its user
// expects. If the system has no more threads, whoever has the turn writes.
//
// Nothing can be taken back. Commit, Keep, Restore and Abandon do nothing.
//
// Memory: kGatherNbytes, for small spans that are written as one. A worker that waits keeps its
// chunk, so the pipeline's slots are the bound for what waits.
#ifndef PYCKPT_WRITE_ORDERED_SINK_H_
#define PYCKPT_WRITE_ORDERED_SINK_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "write/sink.h"

namespace pyckpt {

class OrderedSink final : public Sink {
 public:
  static constexpr std::size_t kGatherNbytes = std::size_t{256} << 10;

  // Writes all of the span, which follows those before, or throws.
  using Write = std::function<void(Span)>;

  explicit OrderedSink(Write write) : write_(std::move(write)) {}

  void Open(std::uint64_t most_nbytes) override;

  // Throws what work throws: the first error of a write, of poll, or of work itself.
  void Run(const Work& work, const Poll& poll) override;

  // Throws the first error of a write or of poll, or after Stop kSystem with ECANCELED.
  void WriteAt(std::uint64_t offset, const std::vector<Span>& spans) override;

  void Stop() noexcept override;
  void Seal(std::uint64_t /*nbytes*/) override {}
  void Commit(bool /*keep_previous*/) override {}
  void Keep() noexcept override {}
  void Restore() noexcept override {}
  void Abandon() noexcept override {}

 private:
  using Lock = std::unique_lock<std::mutex>;

  void Attend(const Poll& poll);
  void WriteOut(Lock* lock);
  void WriteAll(const std::vector<Span>& spans);
  void WriteGathered();
  void Do(const std::function<void()>& something, Lock* lock);
  void CheckStopped();
  void Fail(std::exception_ptr error) noexcept;

  const Write write_;
  // Small spans that are not written yet. Only whoever writes uses it.
  std::vector<std::uint8_t> gathered_;

  std::mutex mutex_;                  // guards all below
  std::condition_variable workers_;   // a piece is written, or will not be
  std::condition_variable attendee_;  // for the thread in Run: a piece is there, or work has ended
  std::uint64_t next_ = 0;            // the offset whose turn it is
  const std::vector<Span>* piece_ = nullptr;  // whose turn it is, until it is written
  bool writing_ = false;                      // a thread is in WriteAll
  bool attended_ = false;                     // the thread in Run writes
  bool ended_ = false;                        // work has ended
  std::exception_ptr error_;
};

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_ORDERED_SINK_H_
