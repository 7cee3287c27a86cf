// Workers that turn a planned stream into a file: read, join, encode, write.
//
//   worker: wait for a slot ─▶ Read chunk k ─▶ (in order) Join ─▶ Encode
//           ─▶ (in order) place ─▶ write whatever is placed
//
// Chunks are handed out in stream order. A worker whose chunk is encoded before the chunks in
// front of it leaves it in its slot and goes on. The worker that completes the first open chunk
// gives a place to all complete chunks that follow it. Several workers write placed chunks at
// once. The first error stops all workers and is thrown.
//
// Memory: slots = 2 x threads. Each slot holds the code of a chunk, and a copy of the chunk if
// it does not come from host memory. Each worker holds its encoder, and one gathered copy for
// chunks of many pieces.
#ifndef PYCKPT_WRITE_PIPELINE_H_
#define PYCKPT_WRITE_PIPELINE_H_

#include <atomic>
#include <cstdint>
#include <functional>

#include "codec/codec.h"
#include "write/file_sink.h"
#include "write/stream_plan.h"

namespace pyckpt {

// Called by the waiting thread about 20 times a second; throws to stop the work.
using Poll = std::function<void()>;

// Writes all of plan through codec to sink, and returns the file's size in bytes. As the file
// grows, adds to written_nbytes the bytes of plan that are in it. Throws the first error of a
// worker or of poll, once all workers have stopped.
std::uint64_t RunPipeline(StreamPlan* plan, const Codec& codec, int level, int threads,
                          FileSink* sink, const Poll& poll,
                          std::atomic<std::uint64_t>* written_nbytes);

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_PIPELINE_H_
