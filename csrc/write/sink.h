// Where the bytes of an archive go. The pipeline, the codecs and the plan know none of the sinks.
//
//   Open --Run(WriteAt*)--> Seal --> Commit --> Keep     (the new contents stay)
//                                       `--> Restore  (the old ones come back)
//
// All or nothing, where the place allows it: nobody sees the new contents before Commit. Abandon()
// may be called at any time. Keep, Restore and Abandon ignore failures.
#ifndef PYCKPT_WRITE_SINK_H_
#define PYCKPT_WRITE_SINK_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

// Called about 20 times a second by a thread that waits; throws to stop the work.
using Poll = std::function<void()>;

class Sink {
 public:
  Sink() = default;
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;
  virtual ~Sink() = default;

  // Call it once, before all others. Fails if it is known that the place cannot be written to.
  // most_nbytes is the size that the contents will hardly exceed.
  virtual void Open(std::uint64_t most_nbytes) = 0;

  // Reserves space, so that a full disk fails before any work is done. Does nothing if the place
  // cannot reserve.
  virtual void Reserve(std::uint64_t /*nbytes*/) {}

  // Runs work, and returns when it has ended. Only work calls WriteAt, on any threads. It has to
  // call the Poll that it gets, which stands for the caller's. A sink that writes only on the
  // thread that calls Run has work run on another one.
  using Work = std::function<void(const Poll&)>;
  virtual void Run(const Work& work, const Poll& poll) { work(poll); }

  // Writes all spans one after another at offset. The spans are not needed after the call, though
  // the bytes may be written later, and then a later call fails. Thread-safe. The calls must cover
  // the contents without a gap, and begin in their order: a call may wait for bytes in front of its
  // own.
  virtual void WriteAt(std::uint64_t offset, const std::vector<Span>& spans) = 0;

  // Calls of WriteAt that wait fail. Call it when some bytes will not come. Thread-safe.
  virtual void Stop() noexcept = 0;

  // Call it after Run. Waits until all is written; nbytes is the size of the contents.
  virtual void Seal(std::uint64_t nbytes) = 0;

  // Makes the new contents visible under their name. With keep_previous the old ones stay until
  // Keep removes them or Restore brings them back. If there were none, Restore removes the new
  // ones. Without keep_previous, Keep and Restore do nothing.
  virtual void Commit(bool keep_previous) = 0;
  virtual void Keep() noexcept = 0;
  virtual void Restore() noexcept = 0;

  // Removes the contents unless they are final. They are final after a Commit without
  // keep_previous, and after Keep; between Commit and Keep, this restores.
  virtual void Abandon() noexcept = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_SINK_H_
