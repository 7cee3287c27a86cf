// Bytes made by a program that the fuzzer writes. Codecs look at hundreds of
// kilobytes before they choose, and no fuzzer comes upon a Huffman code of
// twenty lengths or a repeat of 32 KiB byte by byte; a few bytes of program make them.
#ifndef PYCKPT_FUZZ_BYTE_PROGRAM_H_
#define PYCKPT_FUZZ_BYTE_PROGRAM_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt::fuzz {

// A tensor of so many bytes, or what passes for one.
struct Part {
  std::size_t nbytes = 0;
  std::uint32_t element_nbytes = 1;
};

struct Bytes {
  std::vector<std::uint8_t> raw;
  std::vector<Part> parts;  // all of raw, in order
};

// A size near one at which something changes: byte chooses which, and how near.
std::size_t SizeNearLimit(std::uint8_t byte);

// Runs the program, four bytes an instruction, and stops at most_nbytes.
// Any bytes are a program.
Bytes RunProgram(Span program, std::size_t most_nbytes);

}  // namespace pyckpt::fuzz

#endif  // PYCKPT_FUZZ_BYTE_PROGRAM_H_
