// Workers that turn a planned stream into a file: read, join, encode, write.
//
//   worker: wait for a slot ─▶ Read chunk k ─▶ (in order) Join ─▶ Encode
//           ─▶ (in order) place ─▶ write whatever is placed
//
// Chunks are handed out in stream order. A worker whose chunk is done before
// its predecessors leaves it in its slot and goes on; whoever completes the
// first open chunk places all that follow it, and placed chunks are written by
// several workers at once. The first error stops all and is thrown.
//
// Memory: slots = 2 x threads, and each slot holds what a chunk was read to
// (nothing for host memory) and its code; each worker holds its encoder and,
// for chunks of many pieces, one gathered copy.
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

// Writes all of plan through codec to sink, and returns how many bytes the file
// has. Adds to written_nbytes, as the file grows, the bytes of plan that are in it.
// Throws the first error of any worker, or what poll threw; no worker runs any
// more then.
std::uint64_t RunPipeline(StreamPlan* plan, const Codec& codec, int level, int threads,
                          FileSink* sink, const Poll& poll,
                          std::atomic<std::uint64_t>* written_nbytes);

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_PIPELINE_H_
