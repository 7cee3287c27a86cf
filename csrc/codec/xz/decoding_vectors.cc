#include "codec/xz/decoding_vectors.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "base/bytes.h"

namespace pyckpt::xz {
namespace {

// GCC warns that attributes of a vector type are ignored when it is a template argument. Here that
// is harmless.
#pragma GCC diagnostic ignored "-Wignored-attributes"

// Each kernel is marked for AVX2, so that no other function here is compiled for it.
#define PYCKPT_AVX2 gnu::target("avx2")
#define PYCKPT_AVX2_INLINE PYCKPT_AVX2, gnu::always_inline

// A vector has sixteen lanes of 16 bits in order, or eight lanes of 32 bits. Instructions that
// widen and narrow work within the halves of a vector. So of two vectors of 32-bit lanes, the first
// has lanes 0 to 3 and 8 to 11, and the second has the others.
using Vector = __m256i;
using Vectors = std::array<Vector, 2>;
using Lanes = std::array<DecodingLane, kVectorLanes>;
using Shorts = std::array<std::uint16_t, kVectorLanes>;
using Words = std::array<std::uint32_t, kVectorLanes>;

// The place of lane k among the 32-bit lanes.
constexpr std::size_t WordOf(std::size_t k) {
  constexpr std::array<std::size_t, 4> kQuarters = {0, 2, 1, 3};
  return 4 * kQuarters[k / 4] + k % 4;
}

template <typename T>
[[PYCKPT_AVX2_INLINE]] inline Vector Load(const T* from) {
  return _mm256_load_si256(reinterpret_cast<const Vector*>(from));
}
[[PYCKPT_AVX2_INLINE]] inline Vectors LoadWords(const Words& words) {
  return {Load(words.data()), Load(words.data() + 8)};
}

template <typename T>
[[PYCKPT_AVX2_INLINE]] inline void Store(Vector vector, T* to) {
  _mm256_store_si256(reinterpret_cast<Vector*>(to), vector);
}
[[PYCKPT_AVX2_INLINE]] inline void StoreWords(const Vectors& vectors, Words* words) {
  Store(vectors[0], words->data());
  Store(vectors[1], words->data() + 8);
}

[[PYCKPT_AVX2_INLINE]] inline Vectors Widen(Vector v) {
  const Vector zero = _mm256_setzero_si256();
  return {_mm256_unpacklo_epi16(v, zero), _mm256_unpackhi_epi16(v, zero)};
}

// In each lane, b if the bits of choice are set, a if they are not.
[[PYCKPT_AVX2_INLINE]] inline Vector Choose(Vector a, Vector b, Vector choice) {
  return _mm256_blendv_epi8(a, b, choice);
}

// ---- Rows of bytes in memory, one for each lane ------------------------------

// Those of lane k in the lower half of the vector, those of lane k + 8 in the upper half.
template <typename Rows>
[[PYCKPT_AVX2_INLINE]] inline Vector LoadSixteenBytes(const Rows& rows, std::size_t k) {
  const auto* lower = reinterpret_cast<const __m128i*>(rows.row(k));
  const auto* upper = reinterpret_cast<const __m128i*>(rows.row(k + 8));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(lower)),
                                 _mm_loadu_si128(upper), 1);
}

template <typename Rows>
[[PYCKPT_AVX2_INLINE]] inline void StoreSixteenBytes(Vector v, const Rows& rows, std::size_t k) {
  auto* lower = reinterpret_cast<__m128i*>(rows.row(k));
  auto* upper = reinterpret_cast<__m128i*>(rows.row(k + 8));
  _mm_storeu_si128(lower, _mm256_castsi256_si128(v));
  _mm_storeu_si128(upper, _mm256_extracti128_si256(v, 1));
}

// Those of lanes k and k + 1.
template <typename Rows>
[[PYCKPT_AVX2_INLINE]] inline __m128 LoadTwoRows(const Rows& rows, std::size_t k) {
  const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows.row(k)));
  return _mm_loadh_pi(_mm_castsi128_ps(first), reinterpret_cast<const __m64*>(rows.row(k + 1)));
}

template <typename Rows>
[[PYCKPT_AVX2_INLINE]] inline void StoreTwoRows(__m128 v, const Rows& rows, std::size_t k) {
  _mm_storel_pi(reinterpret_cast<__m64*>(rows.row(k)), v);
  _mm_storeh_pi(reinterpret_cast<__m64*>(rows.row(k + 1)), v);
}

// Those of lanes k and k + 1 in the lower half of the vector, of k + 8 and k + 9 in the upper half.
template <typename Rows>
[[PYCKPT_AVX2_INLINE]] inline __m256 LoadEightBytes(const Rows& rows, std::size_t k) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(LoadTwoRows(rows, k)),
                              LoadTwoRows(rows, k + 8), 1);
}

template <typename Rows>
[[PYCKPT_AVX2_INLINE]] inline void StoreEightBytes(Vector v, const Rows& rows, std::size_t k) {
  const __m256 floats = _mm256_castsi256_ps(v);
  StoreTwoRows(_mm256_castps256_ps128(floats), rows, k);
  StoreTwoRows(_mm256_extractf128_ps(floats, 1), rows, k + 8);
}

// Takes the elements of the first half of the vectors and of the second half alternately. If an
// element's number among all is written in binary, vectors first, this moves the top bit behind the
// others. Repeated, it transposes.
template <std::size_t kCount>
[[PYCKPT_AVX2_INLINE]] inline void Interleave(std::array<Vector, kCount>* vectors) {
  const std::array<Vector, kCount> from = *vectors;
  for (std::size_t i = 0; i < kCount / 2; ++i) {
    (*vectors)[2 * i] = _mm256_unpacklo_epi16(from[i], from[i + kCount / 2]);
    (*vectors)[2 * i + 1] = _mm256_unpackhi_epi16(from[i], from[i + kCount / 2]);
  }
}

// ---- The range coders --------------------------------------------------------

struct Coders {
  Vectors range;
  Vectors code;
  Vectors buffer;   // the bytes that are shifted into the code next, from the top
  Vectors shifted;  // how many bytes were, since the start of the byte that is decoded
};

[[PYCKPT_AVX2_INLINE]] inline void Normalize(std::size_t v, Coders* coders) {
  static_assert(kRenormalizeBelow == 1U << 24);
  Vector& range = coders->range[v];
  Vector& buffer = coders->buffer[v];
  const Vector low = _mm256_cmpeq_epi32(_mm256_srli_epi32(range, 24), _mm256_setzero_si256());
  const Vector shift = _mm256_and_si256(low, _mm256_set1_epi32(8));
  const Vector byte = _mm256_and_si256(low, _mm256_srli_epi32(buffer, 24));
  range = _mm256_sllv_epi32(range, shift);
  coders->code[v] = _mm256_or_si256(_mm256_sllv_epi32(coders->code[v], shift), byte);
  buffer = _mm256_sllv_epi32(buffer, shift);
  coders->shifted[v] = _mm256_sub_epi32(coders->shifted[v], low);
}

[[PYCKPT_AVX2_INLINE]] inline Vector Bound(Vector range, Vector probability) {
  return _mm256_mullo_epi32(_mm256_srli_epi32(range, kProbabilityBits), probability);
}

// Returns a mask of the lanes that decide for 1. probability has 32-bit lanes.
[[PYCKPT_AVX2_INLINE]] inline Vector Decide(Vector probability, std::size_t v, Coders* coders) {
  Vector& range = coders->range[v];
  Vector& code = coders->code[v];
  const Vector bound = Bound(range, probability);
  // If the code is less than the bound, the difference wraps around and is larger than the code.
  const Vector difference = _mm256_sub_epi32(code, bound);
  code = _mm256_min_epu32(code, difference);
  const Vector ones = _mm256_cmpeq_epi32(code, difference);
  range = Choose(bound, _mm256_sub_epi32(range, bound), ones);
  Normalize(v, coders);
  return ones;
}

// Takes the decision "no match" in all lanes. Sets the lanes of has_match that decide for "match".
[[PYCKPT_AVX2_INLINE]] inline void DecideLiteral(Vectors* is_literal, Vectors* has_match,
                                                 Coders* coders) {
#pragma GCC unroll 2
  for (std::size_t v = 0; v < 2; ++v) {
    Vector& p = (*is_literal)[v];
    const Vector bound = Bound(coders->range[v], p);
    const Vector code = coders->code[v];
    (*has_match)[v] =
        _mm256_or_si256((*has_match)[v], _mm256_cmpeq_epi32(_mm256_max_epu32(code, bound), code));
    coders->range[v] = bound;
    const Vector rest = _mm256_sub_epi32(_mm256_set1_epi32(kProbabilityOne), p);
    p = _mm256_add_epi32(p, _mm256_srli_epi32(rest, kAdaptation));
    Normalize(v, coders);
  }
}

// The next bytes of each lane's code.
class Codes {
 public:
  [[PYCKPT_AVX2_INLINE]] explicit Codes(const Lanes& lanes) {
    // What idle lanes read. They stay there.
    static constexpr std::array<std::uint8_t, 8> kNothing{};
    alignas(32) Words moves{};
    for (std::size_t k = 0; k < kVectorLanes; ++k) {
      const bool idle = lanes[k].out == nullptr;
      begin_[k] = idle ? kNothing.data() : lanes[k].next;
      moves[WordOf(k)] = idle ? 0 : 0xFFFFFFFF;
    }
    moves_ = LoadWords(moves);
  }

  const std::uint8_t* row(std::size_t k) const { return begin_[k] + offsets_[WordOf(k)]; }

  // Fills the buffers at the start of a byte.
  [[PYCKPT_AVX2_INLINE]] void Read(Coders* coders) {
    const Vector big_endian = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12));
#pragma GCC unroll 2
    for (std::size_t v = 0; v < 2; ++v) {
      const __m256 a = LoadEightBytes(*this, 4 * v);
      const __m256 b = LoadEightBytes(*this, 4 * v + 2);
      const __m256 first = _mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0));
      const __m256 second = _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1));
      first_[v] = _mm256_shuffle_epi8(_mm256_castps_si256(first), big_endian);
      second_[v] = _mm256_shuffle_epi8(_mm256_castps_si256(second), big_endian);
      coders->buffer[v] = first_[v];
      coders->shifted[v] = _mm256_setzero_si256();
    }
  }

  // Fills the buffers again. Five decisions shift at most four bytes, because a decision takes at
  // most 6.05 bits. Nine decisions shift at most seven.
  [[PYCKPT_AVX2_INLINE]] void Refill(Coders* coders) const {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < 2; ++v) {
      // Shifts by 32 and more, and by less than 0, give 0.
      const Vector up = _mm256_slli_epi32(coders->shifted[v], 3);
      const Vector down = _mm256_sub_epi32(_mm256_set1_epi32(32), up);
      const Vector beyond = _mm256_sub_epi32(up, _mm256_set1_epi32(32));
      coders->buffer[v] = _mm256_or_si256(
          _mm256_or_si256(_mm256_sllv_epi32(first_[v], up), _mm256_srlv_epi32(second_[v], down)),
          _mm256_sllv_epi32(second_[v], beyond));
    }
  }

  // Goes on behind what was shifted into the codes, at the end of a byte.
  [[PYCKPT_AVX2_INLINE]] void Advance(const Coders& coders) {
    Vectors offsets = LoadWords(offsets_);
    for (std::size_t v = 0; v < 2; ++v) {
      offsets[v] = _mm256_add_epi32(offsets[v], _mm256_and_si256(coders.shifted[v], moves_[v]));
    }
    StoreWords(offsets, &offsets_);
  }

 private:
  std::array<const std::uint8_t*, kVectorLanes> begin_;
  alignas(32) Words offsets_{};
  Vectors moves_;  // which lanes are not idle
  Vectors first_;  // the next four bytes of each lane
  Vectors second_;
};

// ---- The trees ---------------------------------------------------------------

// The subtrees of one level, in each lane the one that it has reached.
template <auto kLevel>
class Subtrees {
 public:
  [[PYCKPT_AVX2_INLINE]] Subtrees(Lanes* lanes, Vector indexes) : lanes_(lanes) {
    using Subtree =
        typename std::decay_t<decltype(std::declval<DecodingModel>().*kLevel)>::value_type;
    static_assert(sizeof(Subtree) == 8 || sizeof(Subtree) == 16);
    Store(_mm256_slli_epi16(indexes, sizeof(Subtree) == 8 ? 3 : 4), offsets_.data());
  }

  std::uint8_t* row(std::size_t k) const {
    auto& level = (*lanes_)[k].model.*kLevel;
    return reinterpret_cast<std::uint8_t*>(level.data()) + offsets_[k];
  }

 private:
  Lanes* lanes_;
  alignas(32) Shorts offsets_;  // in bytes
};

// All lanes' next decision. Adapts the probabilities, adds the decisions to indexes, and returns a
// mask of the lanes that decide for 1.
[[PYCKPT_AVX2_INLINE]] inline Vector Decide(Vector* probabilities, Vector* indexes,
                                            Coders* coders) {
  const Vectors wide = Widen(*probabilities);
  const Vector first = Decide(wide[0], 0, coders);
  const Vector second = Decide(wide[1], 1, coders);
  const Vector ones = _mm256_packs_epi32(first, second);
  const Vector target = _mm256_andnot_si256(ones, _mm256_set1_epi16(kTarget0));
  const Vector distance = _mm256_sub_epi16(*probabilities, target);
  *probabilities = _mm256_sub_epi16(*probabilities, _mm256_srai_epi16(distance, kAdaptation));
  *indexes = _mm256_sub_epi16(_mm256_add_epi16(*indexes, *indexes), ones);
  return ones;
}

// The next decision, in node a or, where choice is set, in node b.
[[PYCKPT_AVX2_INLINE]] inline Vector DecideIn(Vector* a, Vector* b, Vector choice, Vector* indexes,
                                              Coders* coders) {
  Vector p = Choose(*a, *b, choice);
  const Vector ones = Decide(&p, indexes, coders);
  *a = Choose(p, *a, choice);
  *b = Choose(*b, p, choice);
  return ones;
}

// Decides three levels down a subtree.
template <auto kLevel>
[[PYCKPT_AVX2_INLINE]] inline void DecideThree(Lanes* lanes, Vector* indexes, Coders* coders) {
  const Subtrees<kLevel> subtrees(lanes, *indexes);
  std::array<Vector, 8> nodes;
#pragma GCC unroll 8
  for (std::size_t k = 0; k < 8; ++k) nodes[k] = LoadSixteenBytes(subtrees, k);
  for (int i = 0; i < 3; ++i) Interleave(&nodes);

  const Vector first = Decide(&nodes[1], indexes, coders);
  const Vector second = DecideIn(&nodes[2], &nodes[3], first, indexes, coders);
  Vector left = Choose(nodes[4], nodes[6], first);
  Vector right = Choose(nodes[5], nodes[7], first);
  DecideIn(&left, &right, second, indexes, coders);
  nodes[4] = Choose(left, nodes[4], first);
  nodes[5] = Choose(right, nodes[5], first);
  nodes[6] = Choose(nodes[6], left, first);
  nodes[7] = Choose(nodes[7], right, first);

  for (int i = 0; i < 3; ++i) Interleave(&nodes);
#pragma GCC unroll 8
  for (std::size_t k = 0; k < 8; ++k) StoreSixteenBytes(nodes[k], subtrees, k);
}

// Decides the last two levels.
[[PYCKPT_AVX2_INLINE]] inline void DecideTwo(Lanes* lanes, Vector* indexes, Coders* coders) {
  const Subtrees<&DecodingModel::lower> subtrees(lanes, *indexes);
  std::array<Vector, 4> nodes;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < 4; ++i) {
    nodes[i] = _mm256_castps_si256(LoadEightBytes(subtrees, 2 * i));
  }
  for (int i = 0; i < 3; ++i) Interleave(&nodes);

  const Vector first = Decide(&nodes[1], indexes, coders);
  DecideIn(&nodes[2], &nodes[3], first, indexes, coders);

  for (int i = 0; i < 2; ++i) Interleave(&nodes);
#pragma GCC unroll 4
  for (std::size_t i = 0; i < 4; ++i) StoreEightBytes(nodes[i], subtrees, 2 * i);
}

// TreeIndex() (codec/xz/model.h) in all lanes.
class Trees {
 public:
  [[PYCKPT_AVX2_INLINE]] explicit Trees(const Lanes& lanes) {
    alignas(32) Shorts positions;
    alignas(32) Shorts masks;
    alignas(32) Shorts position_factors;
    alignas(32) Shorts previous_factors;
    for (std::size_t k = 0; k < kVectorLanes; ++k) {
      const LiteralBits bits = lanes[k].bits;
      positions[k] = static_cast<std::uint16_t>(lanes[k].position);
      masks[k] = static_cast<std::uint16_t>((1U << bits.position) - 1);
      position_factors[k] = static_cast<std::uint16_t>(1U << bits.context);
      previous_factors[k] = static_cast<std::uint16_t>(1U << (8 + bits.context));
    }
    positions_ = Load(positions.data());
    masks_ = Load(masks.data());
    position_factors_ = Load(position_factors.data());
    previous_factors_ = Load(previous_factors.data());
  }

  // Those of the bytes that follow previous. Each call goes on by a byte.
  [[PYCKPT_AVX2_INLINE]] Vector Next(Vector previous) {
    const Vector position = _mm256_and_si256(positions_, masks_);
    positions_ = _mm256_add_epi16(positions_, _mm256_set1_epi16(1));
    // Shifts, as products with powers of two: up, and down by 16 less.
    return _mm256_or_si256(_mm256_mullo_epi16(position, position_factors_),
                           _mm256_mulhi_epu16(previous, previous_factors_));
  }

 private:
  Vector positions_;  // the lower 16 bits
  Vector masks_;
  Vector position_factors_;
  Vector previous_factors_;
};

// ---- The result --------------------------------------------------------------

// Collects one byte of each lane at a time and writes sixteen bytes of a lane at a time.
class Columns {
 public:
  explicit Columns(const Lanes& lanes) {
    for (std::size_t k = 0; k < kVectorLanes; ++k) out_[k] = lanes[k].out;
  }

  [[PYCKPT_AVX2_INLINE]] void Append(Vector bytes) {
    rows_[count_++] =
        _mm_packus_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    if (count_ == rows_.size()) WriteAll();
  }

  void WriteRest() {
    for (std::size_t k = 0; k < kVectorLanes; ++k) {
      for (std::size_t i = 0; i < count_ && out_[k] != nullptr; ++i) {
        out_[k][i] = reinterpret_cast<const std::uint8_t*>(&rows_[i])[k];
      }
    }
  }

 private:
  // Transposes as Interleave() does.
  [[PYCKPT_AVX2]] void WriteAll() {
    count_ = 0;
    for (int i = 0; i < 4; ++i) {
      const auto from = rows_;
      for (std::size_t k = 0; k < 8; ++k) {
        rows_[2 * k] = _mm_unpacklo_epi8(from[k], from[k + 8]);
        rows_[2 * k + 1] = _mm_unpackhi_epi8(from[k], from[k + 8]);
      }
    }
    for (std::size_t k = 0; k < kVectorLanes; ++k) {
      if (out_[k] == nullptr) continue;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out_[k]), rows_[k]);
      out_[k] += sizeof rows_[k];
    }
  }

  std::array<std::uint8_t*, kVectorLanes> out_;
  std::array<__m128i, 16> rows_;
  std::size_t count_ = 0;
};

}  // namespace

[[PYCKPT_AVX2]] void DecodeInVectors(std::array<DecodingLane, kVectorLanes>* lanes,
                                     std::size_t nbytes) {
  alignas(32) Words range;
  alignas(32) Words code;
  alignas(32) Words literal;
  alignas(32) Words match;
  alignas(32) Shorts last;
  for (std::size_t k = 0; k < kVectorLanes; ++k) {
    const DecodingLane& lane = (*lanes)[k];
    range[WordOf(k)] = lane.range;
    code[WordOf(k)] = lane.code;
    literal[WordOf(k)] = lane.is_literal;
    last[k] = static_cast<std::uint16_t>(lane.previous);
  }
  Coders coders;
  coders.range = LoadWords(range);
  coders.code = LoadWords(code);
  Vectors is_literal = LoadWords(literal);
  Vectors has_match = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  Vector previous = Load(last.data());
  Codes codes(*lanes);
  Trees trees(*lanes);
  Columns columns(*lanes);
  for (std::size_t i = 0; i < nbytes; ++i) {
    codes.Read(&coders);
    Vector indexes = trees.Next(previous);
    DecideLiteral(&is_literal, &has_match, &coders);
    DecideThree<&DecodingModel::upper>(lanes, &indexes, &coders);
    codes.Refill(&coders);
    DecideThree<&DecodingModel::middle>(lanes, &indexes, &coders);
    codes.Refill(&coders);
    DecideTwo(lanes, &indexes, &coders);
    codes.Advance(coders);
    previous = _mm256_and_si256(indexes, _mm256_set1_epi16(0xFF));
    columns.Append(previous);
  }
  columns.WriteRest();

  StoreWords(coders.range, &range);
  StoreWords(coders.code, &code);
  StoreWords(is_literal, &literal);
  StoreWords(has_match, &match);
  Store(previous, last.data());
  for (std::size_t k = 0; k < kVectorLanes; ++k) {
    DecodingLane& lane = (*lanes)[k];
    if (lane.out == nullptr) continue;
    lane.range = range[WordOf(k)];
    lane.code = code[WordOf(k)];
    lane.next = codes.row(k);
    lane.out += nbytes;
    lane.position += nbytes;
    lane.previous = last[k];
    lane.is_literal = literal[WordOf(k)];
    lane.has_match |= match[WordOf(k)] != 0;
  }
}

}  // namespace pyckpt::xz

#else

#include <cstdlib>

// Never called, because UseAvx2() is false on this architecture.
void pyckpt::xz::DecodeInVectors(std::array<DecodingLane, kVectorLanes>*, std::size_t) {
  std::abort();
}

#endif
