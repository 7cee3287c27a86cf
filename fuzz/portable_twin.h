// Another process that does the same with portable code. A process looks at
// PYCKPT_PORTABLE once, so two ways to encode take two processes.
#ifndef PYCKPT_FUZZ_PORTABLE_TWIN_H_
#define PYCKPT_FUZZ_PORTABLE_TWIN_H_

#include <sys/types.h>

#include <functional>
#include <string>

namespace pyckpt::fuzz {

class PortableTwin {
 public:
  using Answer = std::function<std::string(const std::string& question)>;

  // To be made before the process has threads, and before it encodes anything.
  // The twin ends with this process.
  explicit PortableTwin(const Answer& answer);
  PortableTwin(const PortableTwin&) = delete;
  PortableTwin& operator=(const PortableTwin&) = delete;

  // What answer makes of the question over there. Aborts if the twin did.
  std::string Ask(const std::string& question) const;

 private:
  int socket_ = -1;
};

}  // namespace pyckpt::fuzz

#endif  // PYCKPT_FUZZ_PORTABLE_TWIN_H_
