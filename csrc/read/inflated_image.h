// Deflated records of a zip file as an image of their own: each record decoded once, straight to
// its place.
#ifndef PYCKPT_READ_INFLATED_IMAGE_H_
#define PYCKPT_READ_INFLATED_IMAGE_H_

#include <memory>
#include <vector>

#include "read/extent.h"
#include "read/stream_image.h"
#include "read/zip_reader.h"

namespace pyckpt {

// A record with a chunk index (zip_chunk_index.h) is decoded chunk by chunk, in parallel. Any other
// is one block. If a block has more than kMostBlockNbytes and its bytes are not kept, it is decoded
// in small pieces, which takes twice as long.
//
// code has the place of each entry's data in the zip file's image: see LocateZipData(). If that
// image is not mapped, the code of wanted records is brought to its memory, and stays.
//
// Call it with the lock that options of the zip file's image need to be copied.
std::shared_ptr<StreamImage> NewInflatedImage(std::shared_ptr<StreamImage> zip,
                                              const std::vector<ZipEntry>& entries,
                                              const std::vector<Extent>& code);

// The places of the records of these sizes in that image.
std::vector<Extent> PlaceInflated(const std::vector<ZipEntry>& entries);

}  // namespace pyckpt

#endif  // PYCKPT_READ_INFLATED_IMAGE_H_
