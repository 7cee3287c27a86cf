// Frames for float tensors. Mantissas do not repeat. So the gain comes from byte frequencies and
// from the long repeats that codec/repeats.h finds. libzstd's match finder is not needed.
#ifndef PYCKPT_CODEC_ZSTD_LITERAL_FRAME_H_
#define PYCKPT_CODEC_ZSTD_LITERAL_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/literal_writer.h"
#include "codec/plan.h"
#include "codec/repeats.h"
#include "codec/runs.h"
#include "codec/zstd/literal_code.h"
#include "codec/zstd/sequences.h"

namespace pyckpt::zstd {

// Writes frames (RFC 8878, section 3.1.1) of parts of a chunk. Keeps the memory of its tables
// between frames. A table is sent once for all blocks of a planned block.
class LiteralFrameWriter {
 public:
  // How many bytes frames may take, with any codes, and how many more may be overwritten.
  static std::size_t Bound(std::size_t raw_nbytes, std::size_t planned_blocks);

  // Starts a frame at out that begins at offset begin of the chunk. runs and repeats are those of
  // the chunk, and must stay valid until End().
  void Begin(const std::vector<Run>& runs, const std::vector<Repeat>& repeats, std::size_t begin,
             std::uint8_t* out);
  // Adds the next planned block. code is made for it. Blocks that would not get shorter are stored.
  void Append(const BlockPlan& plan, const LiteralCode& code);
  // Ends the frame, which has at least one block, and returns its end.
  std::uint8_t* End();

 private:
  // Returns false, and writes nothing, unless a repeat shows that the block is one byte many times.
  bool WriteOneByte(std::size_t begin, std::size_t end);
  void WriteRaw(std::size_t begin, std::size_t end);
  // Returns false, and writes nothing, if the block would not be shorter than its bytes.
  bool WriteCompressed(std::size_t begin, std::size_t end, const LiteralCode& code);
  // Finds sequences_ and returns the block's literals in one piece.
  Span Split(std::size_t begin, std::size_t end);
  // These return the end of what they wrote.
  std::uint8_t* WriteLiterals(Span literals, const LiteralCode& code, std::uint8_t* out);
  std::uint8_t* WriteStreams(Span literals, std::uint8_t* out) const;
  // Writes the header of a block whose contents end at end. It is the last block so far.
  void FinishBlock(unsigned type, std::size_t nbytes, std::uint8_t* end);

  LiteralWriter literals_{LiteralOrder::kBackward};
  std::vector<Sequence> sequences_;
  std::vector<Span> parts_;  // of the block's literals
  Buffer joined_;

  const std::vector<Run>* runs_ = nullptr;
  const std::vector<Repeat>* repeats_ = nullptr;
  std::size_t next_ = 0;        // the first repeat that may end after end_
  std::size_t begin_ = 0;       // of the frame, in the chunk
  std::size_t end_ = 0;         // of what is written, in the chunk
  bool table_is_sent_ = false;  // of the code of the current planned block
  std::uint8_t* header_ = nullptr;
  std::uint8_t* last_block_ = nullptr;  // its header
  std::uint8_t* out_ = nullptr;
};

}  // namespace pyckpt::zstd

#endif  // PYCKPT_CODEC_ZSTD_LITERAL_FRAME_H_
