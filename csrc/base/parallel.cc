#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>

#include "base/thread_group.h"

namespace pyckpt {
namespace {

constexpr std::chrono::milliseconds kPollEvery{50};

class Crew {
 public:
  Crew(std::size_t count, const std::function<Task()>& new_task)
      : count_(count), new_task_(new_task) {}

  void Run(int threads, const std::function<void()>& poll) {
    const auto most = static_cast<std::size_t>(std::max(1, threads));
    const std::size_t wanted = std::min(count_, most);
    working_ = wanted;
    ThreadGroup workers;
    const std::size_t started = workers.Start(wanted, [this] { Work(); });
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      working_ -= wanted - std::max<std::size_t>(1, started);
    }
    if (started == 0) Work();
    Wait(poll);
    workers.Join();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void Work() {
    try {
      const Task task = new_task_();
      for (std::size_t i = next_++; i < count_ && !stopped_; i = next_++) task(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      Fail();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    --working_;
    finished_.notify_all();
  }

  void Wait(const std::function<void()>& poll) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!finished_.wait_for(lock, kPollEvery, [this] { return working_ == 0; })) {
      if (error_) continue;
      lock.unlock();
      try {
        poll();
        lock.lock();
      } catch (...) {
        lock.lock();
        Fail();
      }
    }
  }

  // Keeps the exception that is being handled. Under the lock.
  void Fail() {
    if (!error_) error_ = std::current_exception();
    stopped_ = true;
  }

  const std::size_t count_;
  const std::function<Task()>& new_task_;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stopped_{false};

  std::mutex mutex_;  // guards all below
  std::condition_variable finished_;
  std::size_t working_ = 0;
  std::exception_ptr error_;
};

}  // namespace

void RunParallel(std::size_t count, int threads, const std::function<Task()>& new_task,
                 const std::function<void()>& poll) {
  if (count == 1) {  // not worth a thread
    new_task()(0);
    poll();
  } else if (count != 0) {
    Crew(count, new_task).Run(threads, poll);
  }
}

}  // namespace pyckpt
