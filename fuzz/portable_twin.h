// A second process that does the same work with portable code. A process reads
// PYCKPT_PORTABLE only once, so encoding in both ways needs two processes.
#ifndef PYCKPT_FUZZ_PORTABLE_TWIN_H_
#define PYCKPT_FUZZ_PORTABLE_TWIN_H_

#include <sys/types.h>

#include <functional>
#include <string>

namespace pyckpt::fuzz {

class PortableTwin {
 public:
  using Answer = std::function<std::string(const std::string& question)>;

  // Must be made before the process has threads, and before it encodes anything.
  // The twin ends with this process.
  explicit PortableTwin(const Answer& answer);
  PortableTwin(const PortableTwin&) = delete;
  PortableTwin& operator=(const PortableTwin&) = delete;

  // Returns answer(question), computed by the twin. Aborts if the twin has died.
  std::string Ask(const std::string& question) const;

 private:
  int socket_ = -1;
};

}  // namespace pyckpt::fuzz

#endif  // PYCKPT_FUZZ_PORTABLE_TWIN_H_
