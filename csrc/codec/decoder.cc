#include "codec/decoder.h"

namespace pyckpt {

void BlockDecoder::DecodeInTurn(Span file, std::vector<BlockTask>* tasks) {
  for (BlockTask& task : *tasks) DecodeTask(file, &task);
}

void BlockDecoder::DecodeTask(Span file, BlockTask* task) {
  try {
    task->decoded = Decode(file, task->block, task->out, task->block.raw_nbytes);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCorrupt) throw;
    task->damage = error;
  }
}

}  // namespace pyckpt
