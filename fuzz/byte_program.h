// Makes bytes by running a program that the fuzzer writes. Codecs look at
// hundreds of kilobytes before they choose a method. No fuzzer finds a Huffman code
// of twenty lengths or a repeat of 32 KiB byte by byte, but a few bytes of program make them.
#ifndef PYCKPT_FUZZ_BYTE_PROGRAM_H_
#define PYCKPT_FUZZ_BYTE_PROGRAM_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::fuzz {

// A piece of the bytes that the codec sees as one tensor.
struct Part {
  std::size_t nbytes = 0;
  std::uint32_t element_nbytes = 1;
};

struct Bytes {
  std::vector<std::uint8_t> raw;
  std::vector<Part> parts;  // all of raw, in order
};

// A size near a limit at which a codec changes its behaviour: the lower four bits
// of byte choose the limit, the upper four the distance from it (-8 to 7).
std::size_t SizeNearLimit(std::uint8_t byte);

// Runs the program, which has four bytes per instruction, and stops at most_nbytes
// of output. Any bytes are a valid program.
Bytes RunProgram(Span program, std::size_t most_nbytes);

}  // namespace pyckpt::fuzz

#endif  // PYCKPT_FUZZ_BYTE_PROGRAM_H_
