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
// So little is encoded before a thread for it has started.
constexpr std::uint64_t kWorthThread = std::uint64_t{64} << 10;

class Pipeline {
 public:
  Pipeline(StreamPlan* plan, const Codec& codec, int level, int threads, Sink* sink,
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
    for (Slot& slot : slots_) {
      slot.code = codec.NewChunk();
      free_.push_back(&slot);
    }
  }

  std::uint64_t Run(const Poll& poll) {
    WriteNow(joiner_->Begin());
    working_ = threads_;
    ThreadGroup workers;
    const bool alone = plan_->nbytes() < kWorthThread;
    const std::uint64_t started = alone ? 0 : workers.Start(threads_, [this] { Work(); });
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      working_ -= threads_ - std::max<std::uint64_t>(1, started);
    }
    if (started == 0) Work();  // there is little to do, or the system has no more threads
    Wait(poll);
    workers.Join();
    if (error_) std::rethrow_exception(error_);
    WriteNow(joiner_->End());
    return file_offset_;
  }

 private:
  // One chunk. Only the worker that has taken it uses it without the lock, except that the chunk
  // may be joined while it is encoded.
  struct Slot {
    bool read = false;
    bool encoded = false;
    Chunk chunk;
    std::unique_ptr<EncodedChunk> code;
    std::uint64_t file_offset = 0;
  };
  using Lock = std::unique_lock<std::mutex>;

  void Work() {
    try {
      const std::unique_ptr<ChunkEncoder> encoder = codec_.NewEncoder(level_);
      Lock lock(mutex_);
      while (!error_ && written_ != chunks_) {
        if (!HasWork()) {
          Sleep(&lock);
        } else if (!to_write_.empty()) {
          WriteOne(&lock);
        } else if (!to_encode_.empty()) {
          Slot* slot = to_encode_.front();
          to_encode_.pop_front();
          EncodeOne(slot, encoder.get(), &lock);
        } else {
          ReadOne(encoder.get(), &lock);
        }
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      Fail(std::current_exception());
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--working_ == 0) ended_.notify_one();
  }

  // The functions below are called under the lock, and hold it on return. Those with a parameter
  // for it give it up meanwhile.

  bool HasWork() {
    return !to_write_.empty() || !to_encode_.empty() || (next_chunk_ < chunks_ && !free_.empty());
  }

  void Sleep(Lock* lock) {
    ++sleeping_;
    work_.wait(*lock);
    --sleeping_;
    waking_ = false;
  }

  // Gives up the lock. Somebody else does what else can be done now.
  void Unlock(Lock* lock) {
    if (sleeping_ > 0 && !waking_ && HasWork()) {
      waking_ = true;
      work_.notify_one();
    }
    lock->unlock();
  }

  // Reads the next chunk, and encodes it unless it has to wait for those in front of it.
  void ReadOne(ChunkEncoder* encoder, Lock* lock) {
    const std::uint64_t index = next_chunk_++;
    Slot* slot = free_.back();
    free_.pop_back();
    slot->read = slot->encoded = false;
    unplaced_.push_back(slot);
    Unlock(lock);
    const std::uint64_t offset = index * codec_.chunk_nbytes();
    const std::size_t nbytes =
        std::min<std::uint64_t>(codec_.chunk_nbytes(), plan_->nbytes() - offset);
    plan_->Read(offset, nbytes, &slot->chunk);
    lock->lock();
    slot->read = true;
    JoinAll();
    if (!slot->chunk.deferred && !error_) EncodeOne(slot, encoder, lock);
  }

  // Joins all chunks that are next.
  void JoinAll() {
    for (; joined_ < unplaced_.size() && unplaced_[joined_]->read; ++joined_) {
      Slot* slot = unplaced_[joined_];
      plan_->Join(slot->chunk);
      if (slot->chunk.deferred) to_encode_.push_back(slot);
    }
  }

  void EncodeOne(Slot* slot, ChunkEncoder* encoder, Lock* lock) {
    Unlock(lock);
    encoder->Encode(slot->chunk, slot->code.get());
    lock->lock();
    slot->encoded = true;
    if (!placing_) PlaceAll(lock);
  }

  // Gives all chunks that are next their places in the file. They are joined: each was read, and so
  // was each in front of it. Some joiners are slow, so others go on meanwhile.
  void PlaceAll(Lock* lock) {
    placing_ = true;
    while (joined_ > 0 && unplaced_.front()->encoded && !error_) {
      Slot* slot = unplaced_.front();
      Unlock(lock);
      joiner_->Append(slot->code.get());
      lock->lock();
      unplaced_.pop_front();
      --joined_;
      slot->file_offset = file_offset_;
      file_offset_ += slot->code->nbytes;
      to_write_.push_back(slot);
    }
    placing_ = false;
  }

  // Chunks leave to_write_ in the order of the file, as the sink wants them.
  void WriteOne(Lock* lock) {
    Slot* slot = to_write_.front();
    to_write_.pop_front();
    Unlock(lock);
    joiner_->Settle(slot->code.get());
    sink_->WriteAt(slot->file_offset, slot->code->spans);
    *written_nbytes_ += slot->chunk.nbytes;
    lock->lock();
    free_.push_back(slot);
    if (++written_ == chunks_) work_.notify_all();
  }

  void WriteNow(const std::string& bytes) {
    if (bytes.empty()) return;
    sink_->WriteAt(file_offset_, {AsSpan(bytes)});
    file_offset_ += bytes.size();
  }

  // Waits until all workers have ended. Polls meanwhile, because workers cannot handle signals.
  void Wait(const Poll& poll) {
    Lock lock(mutex_);
    while (!ended_.wait_for(lock, kPollEvery, [this] { return working_ == 0; })) {
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

  void Fail(std::exception_ptr error) {
    if (!error_) error_ = std::move(error);
    sink_->Stop();
    work_.notify_all();
  }

  StreamPlan* plan_;
  const Codec& codec_;
  int level_;
  Sink* sink_;
  std::atomic<std::uint64_t>* written_nbytes_;
  std::unique_ptr<StreamJoiner> joiner_;
  const std::uint64_t chunks_;
  const std::uint64_t threads_;

  std::mutex mutex_;               // guards all below
  std::condition_variable work_;   // for workers
  std::condition_variable ended_;  // for the waiting thread: no worker works any more
  std::vector<Slot> slots_;
  std::vector<Slot*> free_;     // the last one was used last: its memory is there, and in a cache
  std::deque<Slot*> unplaced_;  // chunks that are taken and have no place yet, in order
  std::size_t joined_ = 0;      // so many of them, from the first, are joined
  bool placing_ = false;        // a worker is in PlaceAll, also while it has given up the lock
  std::uint64_t next_chunk_ = 0;
  std::uint64_t written_ = 0;
  std::deque<Slot*> to_encode_;  // joined chunks that had to wait for that
  std::deque<Slot*> to_write_;   // placed chunks, in order
  std::uint64_t sleeping_ = 0;   // workers
  bool waking_ = false;          // one of them is notified, and not awake yet
  std::uint64_t file_offset_ = 0;
  std::uint64_t working_ = 0;  // workers that have not ended
  std::exception_ptr error_;
};

}  // namespace

std::uint64_t RunPipeline(StreamPlan* plan, const Codec& codec, int level, int threads, Sink* sink,
                          const Poll& poll, std::atomic<std::uint64_t>* written_nbytes) {
  return Pipeline(plan, codec, level, threads, sink, written_nbytes).Run(poll);
}

}  // namespace pyckpt
