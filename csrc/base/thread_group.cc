#include "base/thread_group.h"

#include <system_error>

namespace pyckpt {

std::size_t ThreadGroup::Start(std::size_t wanted, const std::function<void()>& work) {
  threads_.reserve(wanted);
  try {
    while (threads_.size() < wanted) threads_.emplace_back(work);
  } catch (const std::system_error&) {  // those that have started do the work
  }
  return threads_.size();
}

void ThreadGroup::Join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace pyckpt
