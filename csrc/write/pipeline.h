// Workers that turn a planned stream into a file: read, join, encode, write.
//
//   Read ─▶ Encode ─▶ (in order) place ─▶ write
//     │       ▲
//     ▼       │ chunks with deferred bytes
//   (in order) Join
//
// Chunks are handed out in stream order, each into a slot. Checksums are joined in that order, and
// deferred bytes depend on them. So a chunk with deferred bytes is encoded once it and all chunks
// in front of it are joined; any other at once. A chunk gets its place in the file once it and all
// chunks in front of it are encoded. No worker waits for another: whoever completes the order
// joins, or places, all chunks that are next. What then can be done lies ready for any worker.
//
// A worker sleeps only while nothing can be done. At most one is woken at a time, and wakes the
// next if there is more to do. The first error stops all workers and is thrown.
//
// Memory: slots = 2 x threads. Each slot holds the code of a chunk, and a copy of the chunk if it
// does not come from host memory. Each worker holds its encoder. If a chunk has many pieces, its
// worker also holds a contiguous copy of it.
#ifndef PYCKPT_WRITE_PIPELINE_H_
#define PYCKPT_WRITE_PIPELINE_H_

#include <atomic>
#include <cstdint>

#include "codec/codec.h"
#include "write/sink.h"
#include "write/stream_plan.h"

namespace pyckpt {

// Encodes all of plan with codec, writes it to sink, and returns the file's size in bytes. After
// each chunk is written, adds its size before compression to written_nbytes. Throws the first error
// of a worker or of poll, once all workers have stopped.
std::uint64_t RunPipeline(StreamPlan* plan, const Codec& codec, int level, int threads, Sink* sink,
                          const Poll& poll, std::atomic<std::uint64_t>* written_nbytes);

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_PIPELINE_H_
