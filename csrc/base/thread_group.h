// Threads that all do the same work.
#ifndef PYCKPT_BASE_THREAD_GROUP_H_
#define PYCKPT_BASE_THREAD_GROUP_H_

#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

namespace pyckpt {

class ThreadGroup {
 public:
  ThreadGroup() = default;
  ThreadGroup(const ThreadGroup&) = delete;
  ThreadGroup& operator=(const ThreadGroup&) = delete;
  ~ThreadGroup() { Join(); }

  // Starts up to wanted threads that run work, and returns how many. They are fewer, or none, if
  // the system has no more, or no memory for them: limits count a user's threads, or those of a
  // container.
  std::size_t Start(std::size_t wanted, const std::function<void()>& work);

  // Waits until all have ended.
  void Join();

 private:
  std::vector<std::thread> threads_;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_THREAD_GROUP_H_
