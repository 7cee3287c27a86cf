#include "base/thread_group.h"

#include <new>
#include <system_error>

namespace pyckpt {

std::size_t ThreadGroup::Start(std::size_t wanted, const std::function<void()>& work) {
  try {
    threads_.reserve(wanted);
    while (threads_.size() < wanted) threads_.emplace_back(work);
  } catch (const std::system_error&) {  // those that have started do the work
  } catch (const std::bad_alloc&) {     // likewise
  }
  return threads_.size();
}

void ThreadGroup::Join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace pyckpt
