// Takes the LZMA2 data of one block apart for a lane.
#ifndef PYCKPT_CODEC_XZ_LANE_FEEDER_H_
#define PYCKPT_CODEC_XZ_LANE_FEEDER_H_

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "codec/xz/decoding_lane.h"

namespace pyckpt::xz {

// A block of literals to decode.
struct LiteralTask {
  Span code;                     // all of the block's LZMA2 data
  std::size_t slack_nbytes = 0;  // readable bytes after the code. They do not change the result.
  std::uint8_t* out = nullptr;
  std::size_t out_nbytes = 0;

  // The result. False if code is damaged, has matches, or uses pb or more than lc + lp = 4, or if
  // there is less slack than LaneFeeder needs; liblzma should then decode it. The contents of out
  // are then unspecified. No checksum is compared.
  bool decoded = false;
};

class LaneFeeder {
 public:
  static constexpr std::size_t kSlackNbytes = CodeReach(1);

  // Prepares lane for task. Both must stay valid. If there is nothing to decode, because no chunk
  // is coded or something is wrong, the block is finished.
  void Begin(LiteralTask* task, DecodingLane* lane);

  // How many bytes a kernel may decode next. At least 1, unless the lane is idle.
  std::size_t ready_nbytes() const;

  // Call this after a kernel. If a chunk is complete, prepares the lane for the next one. At the
  // block's end, or if anything in it is wrong, the block is finished: task->decoded is set, and
  // the lane is idle.
  void Continue();

 private:
  enum class State { kReady, kEnd, kWrong };

  State Next();
  void Finish(State state);
  bool CopyPlain(bool resets_dictionary);
  bool BeginCoded(unsigned control);

  LiteralTask* task_ = nullptr;
  DecodingLane* lane_ = nullptr;
  const std::uint8_t* at_ = nullptr;   // behind the last chunk whose header was read
  const std::uint8_t* end_ = nullptr;  // of all of the code
  std::size_t chunk_end_ = 0;          // the position at which the lane's chunk is complete
  unsigned least_coded_ = 0;
};

}  // namespace pyckpt::xz

#endif  // PYCKPT_CODEC_XZ_LANE_FEEDER_H_
