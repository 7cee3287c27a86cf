// Workers that turn a planned stream into a file: read, join, encode, write.
//
//   worker: wait for a slot ─▶ Read chunk k ─▶ (in order) Join ─▶ Encode
//           ─▶ (in order) place ─▶ write placed chunks
//
// Chunks are handed out in stream order. A chunk gets its place in the file once it and all chunks
// in front of it are encoded. Until then it stays in its slot, and its worker goes on. The worker
// that encodes the missing chunk places it and the encoded chunks that follow. Several workers
// write placed chunks at once. The first error stops all workers and is thrown.
//
// Memory: slots = 2 x threads. Each slot holds the code of a chunk, and a copy of the chunk if it
// does not come from host memory. Each worker holds its encoder. If a chunk has many pieces, its
// worker also holds a contiguous copy of it.
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

// Encodes all of plan with codec, writes it to sink, and returns the file's size in bytes. After
// each chunk is written, adds its size before compression to written_nbytes. Throws the first error
// of a worker or of poll, once all workers have stopped.
std::uint64_t RunPipeline(StreamPlan* plan, const Codec& codec, int level, int threads,
                          FileSink* sink, const Poll& poll,
                          std::atomic<std::uint64_t>* written_nbytes);

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_PIPELINE_H_
