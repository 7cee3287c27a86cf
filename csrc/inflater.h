// Decodes deflate streams without a wrapper (RFC 1951), piece by piece: ISA-L's
// igzip, which picks the CPU's kernel at run time.
#ifndef PYCKPT_INFLATER_H_
#define PYCKPT_INFLATER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "bytes.h"

struct inflate_state;

namespace pyckpt {

// Needs some 90 kB. Used by one thread at a time.
class Inflater {
 public:
  Inflater();
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  ~Inflater();

  // A stream that begins at file's byte begin and whose code ends before byte
  // end. The bytes have to stay valid.
  void Start(Span file, std::uint64_t begin, std::uint64_t end);

  // Writes the next nbytes to out; fewer only where the stream or the code ends.
  // Throws Error::Corrupt.
  std::size_t Inflate(std::uint8_t* out, std::size_t nbytes);

  // The last block is decoded, and Inflate() has handed out all of it.
  bool ended() const;
  // No block is under way and all the code is used up: another could go on here.
  bool between_blocks() const;
  // Where in the file the code goes on; behind the stream's last byte once ended().
  std::uint64_t offset() const;

 private:
  std::unique_ptr<inflate_state> state_;
  Span file_;
  std::uint64_t given_ = 0;  // up to where the state has been given code
  std::uint64_t end_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_INFLATER_H_
