// The parts of a gzip member (RFC 1952) that the encoder and the decoder both know.
#ifndef PYCKPT_CODEC_GZIP_MEMBER_H_
#define PYCKPT_CODEC_GZIP_MEMBER_H_

#include <cstddef>
#include <string_view>

namespace pyckpt::gzip {

inline constexpr std::size_t kHeaderNbytes = 10;
inline constexpr std::size_t kTrailerNbytes = 8;
inline constexpr std::size_t kStoredHeaderNbytes = 5;  // of a block that starts on a byte
inline constexpr char kExtraFlag = 4;                  // in the header: an extra field follows
// The id of the chunk index in an extra field, which has the index alone.
inline constexpr std::string_view kSubfieldId = "PY";
inline constexpr std::size_t kSubfieldNbytes = 4;  // id and length, before the data

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_MEMBER_H_
