#include "chunks_in_turn.h"

#include <libdeflate.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "base/crc32.h"
#include "codec/gzip/chunk_inflater.h"

namespace pyckpt::fuzz {
namespace {

// An empty stored block, marked as the last one, completes a chunk to a stream.
std::vector<std::uint8_t> ByLibdeflate(Span file, const CodeBlock& chunk) {
  static libdeflate_decompressor* const decompressor = libdeflate_alloc_decompressor();
  const std::uint8_t* begin = file.data + chunk.code_bit / 8;
  std::vector<std::uint8_t> code(begin, begin + chunk.code_nbits / 8);
  code.insert(code.end(), {1, 0, 0, 0xFF, 0xFF});
  std::vector<std::uint8_t> out(chunk.raw_nbytes);
  std::size_t used = 0;
  if (libdeflate_deflate_decompress_ex(decompressor, code.data(), code.size(), out.data(),
                                       out.size(), &used, nullptr) != LIBDEFLATE_SUCCESS ||
      used != code.size()) {
    std::abort();
  }
  return out;
}

}  // namespace

void CheckChunksInTurn(Span file, const std::vector<CodeBlock>& chunks) {
  // No byte behind the file or the room may be touched, so both are as long as they must be.
  const std::vector<std::uint8_t> bytes(file.data, file.data + file.nbytes);
  std::vector<std::vector<std::uint8_t>> outs;
  std::vector<BlockTask> tasks(chunks.size());
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    outs.emplace_back(chunks[i].raw_nbytes);
    tasks[i].block = chunks[i];
    tasks[i].out = outs.back().data();
  }
  static gzip::ChunkInflater inflater;
  const std::vector<BlockTask*> refused = inflater.Inflate({bytes.data(), bytes.size()}, &tasks);
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (std::find(refused.begin(), refused.end(), &tasks[i]) != refused.end()) continue;
    const DecodedBlock& decoded = tasks[i].decoded;
    if (outs[i] != ByLibdeflate(file, chunks[i]) || decoded.raw_nbytes != outs[i].size() ||
        decoded.check != Crc32({outs[i].data(), outs[i].size()})) {
      std::abort();
    }
  }
}

}  // namespace pyckpt::fuzz
