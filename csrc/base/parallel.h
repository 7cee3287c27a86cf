// Runs independent tasks on several threads.
#ifndef PYCKPT_BASE_PARALLEL_H_
#define PYCKPT_BASE_PARALLEL_H_

#include <cstddef>
#include <functional>

namespace pyckpt {

using Task = std::function<void(std::size_t)>;

// Calls task(0) to task(count - 1), each once, roughly in that order. Every thread makes its own
// task with new_task. The calling thread waits, and calls poll about 20 times a second. If the
// system has fewer threads, they do all; if it has none, or count is 1, the calling thread runs the
// tasks and then calls poll once. After an error no more calls begin. The first error of a task or
// of poll is thrown once all threads have stopped.
void RunParallel(std::size_t count, int threads, const std::function<Task()>& new_task,
                 const std::function<void()>& poll);

}  // namespace pyckpt

#endif  // PYCKPT_BASE_PARALLEL_H_
