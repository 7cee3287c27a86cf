#include "write/pipeline.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "base/thread_group.h"

namespace pyckpt {
namespace {

constexpr std::size_t kSlotsPerThread = 2;
constexpr std::chrono::milliseconds kPollEvery{50};

class Pipeline {
 public:
  Pipeline(StreamPlan* plan, const Codec& codec, int level, int threads, FileSink* sink,
           std::atomic<std::uint64_t>* written_nbytes)
      : plan_(plan),
        codec_(codec),
        level_(level),
        sink_(sink),
        written_nbytes_(written_nbytes),
        joiner_(codec.NewJoiner()),
        chunks_((plan->nbytes() + codec.chunk_nbytes() - 1) / codec.chunk_nbytes()),
        threads_(std::min<std::uint64_t>(static_cast<std::uint64_t>(threads), chunks_)),
        slots_(kSlotsPerThread * threads_) {
    for (Slot& slot : slots_) slot.code = codec.NewChunk();
  }

  std::uint64_t Run(const Poll& poll) {
    WriteNow(joiner_->Begin());
    working_ = threads_;
    ThreadGroup workers;
    const std::uint64_t started = workers.Start(threads_, [this] { Work(); });
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      working_ -= threads_ - std::max<std::uint64_t>(1, started);
    }
    if (started == 0) Work();  // the system has no more threads
    Wait(poll);
    workers.Join();
    if (error_) std::rethrow_exception(error_);
    WriteNow(joiner_->End());
    return file_offset_;
  }

 private:
  enum class State { kFree, kBusy, kEncoded, kPlaced, kWriting };

  // One chunk. A busy slot belongs to its worker alone. The state changes under the lock.
  struct Slot {
    State state = State::kFree;
    Chunk chunk;
    std::unique_ptr<EncodedChunk> code;
    std::uint64_t file_offset = 0;
  };

  void Work() {
    try {
      const std::unique_ptr<ChunkEncoder> encoder = codec_.NewEncoder(level_);
      std::unique_lock<std::mutex> lock(mutex_);
      while (!error_) {
        if (WriteOne(&lock)) continue;
        if (next_chunk_ == chunks_) {
          // Other workers still encode chunks. This one may have to write them.
          if (written_ == chunks_) break;
          changed_.wait(lock);
          continue;
        }
        Slot& slot = slots_[next_chunk_ % slots_.size()];
        if (slot.state != State::kFree) {
          changed_.wait(lock);
          continue;
        }
        const std::uint64_t index = next_chunk_++;
        slot.state = State::kBusy;
        EncodeOne(index, &slot, encoder.get(), &lock);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      Fail(std::current_exception());
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    --working_;
    changed_.notify_all();
  }

  // The lock is held at the call and on return.
  void EncodeOne(std::uint64_t index, Slot* slot, ChunkEncoder* encoder,
                 std::unique_lock<std::mutex>* lock) {
    lock->unlock();
    const std::uint64_t offset = index * codec_.chunk_nbytes();
    const std::size_t nbytes =
        std::min<std::uint64_t>(codec_.chunk_nbytes(), plan_->nbytes() - offset);
    plan_->Read(offset, nbytes, &slot->chunk);

    lock->lock();
    changed_.wait(*lock, [&] { return joined_ == index || error_; });
    if (error_) return;
    plan_->Join(slot->chunk);
    ++joined_;
    changed_.notify_all();
    lock->unlock();

    encoder->Encode(slot->chunk, slot->code.get());

    lock->lock();
    slot->state = State::kEncoded;
    PlaceAll();
    changed_.notify_all();
  }

  // Gives encoded chunks their places in the file, in order, up to the first chunk that is not
  // encoded yet. Under the lock.
  void PlaceAll() {
    for (; placed_ < chunks_; ++placed_) {
      Slot& slot = slots_[placed_ % slots_.size()];
      if (slot.state != State::kEncoded) return;
      joiner_->Append(slot.code.get());
      slot.file_offset = file_offset_;
      file_offset_ += slot.code->nbytes;
      slot.state = State::kPlaced;
      to_write_.push_back(&slot);
    }
  }

  // Writes one placed chunk; false if there is none. The lock is held at the call and on return.
  bool WriteOne(std::unique_lock<std::mutex>* lock) {
    if (to_write_.empty()) return false;
    Slot* slot = to_write_.front();
    to_write_.pop_front();
    slot->state = State::kWriting;
    lock->unlock();
    joiner_->Settle(slot->code.get());
    sink_->WriteAt(slot->file_offset, slot->code->spans);
    *written_nbytes_ += slot->chunk.nbytes;
    lock->lock();
    slot->state = State::kFree;
    ++written_;
    changed_.notify_all();
    return true;
  }

  void WriteNow(const std::string& bytes) {
    if (bytes.empty()) return;
    sink_->WriteAt(file_offset_, {AsSpan(bytes)});
    file_offset_ += bytes.size();
  }

  // Waits until all workers have ended. Polls meanwhile, because workers cannot handle signals.
  void Wait(const Poll& poll) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!changed_.wait_for(lock, kPollEvery, [this] { return working_ == 0; })) {
      if (error_) continue;
      lock.unlock();
      std::exception_ptr stop;
      try {
        poll();
      } catch (...) {
        stop = std::current_exception();
      }
      lock.lock();
      if (stop) Fail(stop);
    }
  }

  // Under the lock.
  void Fail(std::exception_ptr error) {
    if (!error_) error_ = std::move(error);
    sink_->Stop();
    changed_.notify_all();
  }

  StreamPlan* plan_;
  const Codec& codec_;
  int level_;
  FileSink* sink_;
  std::atomic<std::uint64_t>* written_nbytes_;
  std::unique_ptr<StreamJoiner> joiner_;
  const std::uint64_t chunks_;
  const std::uint64_t threads_;

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::vector<Slot> slots_;  // chunk k is in slot k % slots_.size()
  std::uint64_t next_chunk_ = 0;
  std::uint64_t joined_ = 0;
  std::uint64_t placed_ = 0;
  std::uint64_t written_ = 0;
  std::deque<Slot*> to_write_;
  std::uint64_t file_offset_ = 0;
  std::uint64_t working_ = 0;
  std::exception_ptr error_;
};

}  // namespace

std::uint64_t RunPipeline(StreamPlan* plan, const Codec& codec, int level, int threads,
                          FileSink* sink, const Poll& poll,
                          std::atomic<std::uint64_t>* written_nbytes) {
  return Pipeline(plan, codec, level, threads, sink, written_nbytes).Run(poll);
}

}  // namespace pyckpt
