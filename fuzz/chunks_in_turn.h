// Decodes chunks of gzip in turn and compares the results with libdeflate's.
#ifndef PYCKPT_FUZZ_CHUNKS_IN_TURN_H_
#define PYCKPT_FUZZ_CHUNKS_IN_TURN_H_

#include <vector>

#include "base/bytes.h"
#include "codec/decoder.h"

namespace pyckpt::fuzz {

// chunks are anywhere in file, which may be damaged. Aborts if a chunk that is decoded in turn has
// other bytes or another checksum than libdeflate finds, or if libdeflate refuses it.
void CheckChunksInTurn(Span file, const std::vector<CodeBlock>& chunks);

}  // namespace pyckpt::fuzz

#endif  // PYCKPT_FUZZ_CHUNKS_IN_TURN_H_
