#include "codec/decoder.h"

namespace pyckpt {

void BlockDecoder::DecodeInTurn(Span file, std::vector<BlockTask>* tasks) {
  for (BlockTask& task : *tasks) DecodeTask(file, &task);
}

void BlockDecoder::DecodeTask(Span file, BlockTask* task) {
  Succeeds(task,
           [&] { task->decoded = Decode(file, task->block, task->out, task->block.raw_nbytes); });
}

}  // namespace pyckpt
