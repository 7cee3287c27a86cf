#include "codec/xz/lanes.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace pyckpt::xz {
namespace {

// GCC warns that attributes of a vector type are ignored when it is a template argument. Here that
// is harmless.
#pragma GCC diagnostic ignored "-Wignored-attributes"

// Each kernel is marked for AVX2, so that no other function here is compiled for it.
#define PYCKPT_AVX2 gnu::target("avx2")

constexpr std::size_t kOctet = 8;  // 32-bit lanes in a vector
constexpr std::size_t kOctets = kLanes / kOctet;
static_assert(kLaneNbytes % 8 == 0);

// ---- The model -------------------------------------------------------------

// What coding one half of a byte does to a subtree, as vectors over the subtree's nodes. The nodes
// of the first three levels are in the lower 16 bytes of a subtree, those of the fourth level in
// the upper 16. A shuffle does not move bytes across that boundary.
struct alignas(32) Visit {
  Subtree target;                       // the value that each node on the path moves towards
  Subtree rate;                         // 2^16 / 2^kAdaptation for nodes on the path, else 0
  std::array<std::uint8_t, 32> upper;   // moves the path to entries 0 to 3 of a row
  std::array<std::uint8_t, 32> bottom;  // moves it to 4 to 7, for a byte's lower half
};

constexpr std::array<Visit, 16> MakeVisits() {
  constexpr std::uint8_t kZero = 0x80;  // as a shuffle index
  std::array<Visit, 16> visits{};
  for (unsigned half = 0; half < visits.size(); ++half) {
    Visit& v = visits[half];
    for (std::size_t i = 0; i < v.upper.size(); ++i) v.upper[i] = v.bottom[i] = kZero;
    unsigned node = 1;
    for (unsigned level = 0; level < 4; ++level) {
      const unsigned bit = half >> (3 - level) & 1;
      v.target[node] = bit != 0 ? 0 : kTarget0;
      v.rate[node] = 1U << (16 - kAdaptation);
      const unsigned entry = (level == 3 ? 16 : 0) + 2 * level;
      for (unsigned i = 0; i < 2; ++i) {
        v.upper[entry + i] = static_cast<std::uint8_t>(2 * (node % 8) + i);
        v.bottom[entry + 8 + i] = v.upper[entry + i];
      }
      node = 2 * node + bit;
    }
  }
  return visits;
}

constexpr std::array<Visit, 16> kVisits = MakeVisits();

template <typename T>
[[PYCKPT_AVX2, gnu::always_inline]] inline __m256i Load(const T& from) {
  static_assert(sizeof from == sizeof(__m256i));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(&from));
}

template <typename T>
[[PYCKPT_AVX2, gnu::always_inline]] inline void Store(T* to, __m256i vector) {
  static_assert(sizeof *to == sizeof(__m256i));
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), vector);
}

// Adapts the nodes on the path. Returns all nodes as they were before. The upper half of a product
// with a power of two is a right shift, by kAdaptation for nodes on the path. For all other nodes
// the product is 0.
[[PYCKPT_AVX2, gnu::always_inline]] inline __m256i Adapt(Subtree* subtree, const Visit& visit) {
  const __m256i before = Load(*subtree);
  const __m256i distance = _mm256_sub_epi16(before, Load(visit.target));
  Store(subtree, _mm256_sub_epi16(before, _mm256_mulhi_epi16(distance, Load(visit.rate))));
  return before;
}

// Runs a lane's bytes through the model. Writes one row of eight probabilities for each byte.
[[PYCKPT_AVX2]] void NoteProbabilities(const std::uint8_t* raw, std::uint32_t previous,
                                       LiteralBits bits, LiteralModel* model,
                                       ByteProbabilities* rows) {
  for (std::size_t i = 0; i < kLaneNbytes; ++i) {
    Tree& tree = model->trees[TreeIndex(bits, i, previous)];
    previous = raw[i];
    const Visit& upper = kVisits[previous >> 4];
    const Visit& lower = kVisits[previous & 15];
    const __m256i path = _mm256_or_si256(
        _mm256_shuffle_epi8(Adapt(tree.data(), upper), Load(upper.upper)),
        _mm256_shuffle_epi8(Adapt(&tree[1 + (previous >> 4)], lower), Load(lower.bottom)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + i),
                     _mm_or_si128(_mm256_castsi256_si128(path), _mm256_extracti128_si256(path, 1)));
  }
}

// ---- The range coders ------------------------------------------------------

// Eight range coders (codec/xz/range_coder.h). They flush after every pair of bytes. What decisions
// add to low since the last flush is summed in the scale of low at that flush: 32 bits and a
// fraction of 24 bits. Windows are 64-bit lanes; even and odd coders have separate vectors.
struct Octet {
  __m256i range;
  __m256i whole;
  __m256i fraction;
  __m256i shift;  // in bits, since the flush
  __m256i even_windows;
  __m256i odd_windows;
  __m256i settled;     // settled bytes of each code
  __m256i is_literal;  // the probability of "no match"
};

// The fraction is exact while no more than this many bits were shifted out.
constexpr int kMostShift = 24;

// The even or the odd 32-bit lanes, as 64-bit lanes.
[[PYCKPT_AVX2, gnu::always_inline]] inline __m256i Even(__m256i v) {
  return _mm256_blend_epi32(v, _mm256_setzero_si256(), 0xAA);
}
[[PYCKPT_AVX2, gnu::always_inline]] inline __m256i Odd(__m256i v) {
  return _mm256_srli_epi64(v, 32);
}

// In each lane, b if the top bit of choice is set, else a.
[[PYCKPT_AVX2, gnu::always_inline]] inline __m256i Choose(__m256i a, __m256i b, __m256i choice) {
  return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b),
                                              _mm256_castsi256_ps(choice)));
}

[[PYCKPT_AVX2, gnu::always_inline]] inline void Renormalize(Octet* o) {
  static_assert(kRenormalizeBelow == 1U << 24);
  const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(o->range, 24), _mm256_setzero_si256());
  const __m256i shift = _mm256_and_si256(low, _mm256_set1_epi32(8));
  o->range = _mm256_sllv_epi32(o->range, shift);
  o->shift = _mm256_add_epi32(o->shift, shift);
}

[[PYCKPT_AVX2, gnu::always_inline]] inline __m256i Bound(const Octet& o, __m256i probabilities) {
  return _mm256_mullo_epi32(_mm256_srli_epi32(o.range, kProbabilityBits), probabilities);
}

[[PYCKPT_AVX2, gnu::always_inline]] inline void DecideLiteral(Octet* o) {
  o->range = Bound(*o, o->is_literal);
  const __m256i rest = _mm256_sub_epi32(_mm256_set1_epi32(kProbabilityOne), o->is_literal);
  o->is_literal = _mm256_add_epi32(o->is_literal, _mm256_srli_epi32(rest, kAdaptation));
  Renormalize(o);
}

// Each lane's decision is the top bit of its lane in decisions.
[[PYCKPT_AVX2, gnu::always_inline]] inline void Decide(__m256i probabilities, __m256i decisions,
                                                       Octet* o) {
  const __m256i bound = Bound(*o, probabilities);
  const __m256i added = Choose(_mm256_setzero_si256(), bound, decisions);
  o->range = Choose(bound, _mm256_sub_epi32(o->range, bound), decisions);
  o->whole = _mm256_add_epi32(o->whole, _mm256_srlv_epi32(added, o->shift));
  // 24 - shift, for a shift of 0, 8, 16 or 24. For a shift of 0 the mask clears all bits.
  const __m256i up = _mm256_xor_si256(o->shift, _mm256_set1_epi32(kMostShift));
  const __m256i rest =
      _mm256_and_si256(_mm256_sllv_epi32(added, up), _mm256_set1_epi32((1 << kMostShift) - 1));
  o->fraction = _mm256_add_epi32(o->fraction, rest);
  Renormalize(o);
}

// One row of each of eight lanes, transposed: one vector for each decision.
struct Columns {
  std::array<__m256i, 8> probabilities;
};

[[PYCKPT_AVX2, gnu::always_inline]] inline Columns Transpose(const ByteProbabilities* rows) {
  std::array<__m256i, 4> lanes;  // lane k in the lower half, lane k + 4 in the upper one
  for (std::size_t k = 0; k < 4; ++k) {
    const auto* lower = reinterpret_cast<const __m128i*>(rows + k * kRowsPerLane);
    const auto* upper = reinterpret_cast<const __m128i*>(rows + (k + 4) * kRowsPerLane);
    lanes[k] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(lower)),
                                       _mm_loadu_si128(upper), 1);
  }
  const std::array<__m256i, 2> even = {_mm256_unpacklo_epi16(lanes[0], lanes[2]),
                                       _mm256_unpackhi_epi16(lanes[0], lanes[2])};
  const std::array<__m256i, 2> odd = {_mm256_unpacklo_epi16(lanes[1], lanes[3]),
                                      _mm256_unpackhi_epi16(lanes[1], lanes[3])};
  const __m256i zero = _mm256_setzero_si256();
  Columns columns;
  for (std::size_t i = 0; i < 2; ++i) {
    const __m256i first = _mm256_unpacklo_epi16(even[i], odd[i]);
    const __m256i second = _mm256_unpackhi_epi16(even[i], odd[i]);
    columns.probabilities[4 * i] = _mm256_unpacklo_epi16(first, zero);
    columns.probabilities[4 * i + 1] = _mm256_unpackhi_epi16(first, zero);
    columns.probabilities[4 * i + 2] = _mm256_unpacklo_epi16(second, zero);
    columns.probabilities[4 * i + 3] = _mm256_unpackhi_epi16(second, zero);
  }
  return columns;
}

// Where an octet's coders read and write. Lane k is at k times kLaneNbytes in raw, kRowsPerLane in
// rows, and kLaneCodeBound in code.
struct Place {
  const std::uint8_t* raw;  // at the next pair of bytes
  const ByteProbabilities* rows;
  std::uint8_t* code;
};

// Encodes a pair of bytes again, lane by lane, from the state before it. Needed for very improbable
// pairs, when a lane shifts out more bits than the fraction can hold.
[[PYCKPT_AVX2, gnu::noinline, gnu::cold]] void EncodePairSlowly(const Place& place, __m256i range,
                                                                __m256i is_literal, Octet* o) {
  struct alignas(32) Lanes {
    std::array<std::uint32_t, kOctet> range, is_literal, settled;
    std::array<std::array<std::uint64_t, kOctet / 2>, 2> windows;
  } lanes;
  Store(&lanes.range, range);
  Store(&lanes.is_literal, is_literal);
  Store(&lanes.settled, o->settled);
  Store(&lanes.windows[0], o->even_windows);
  Store(&lanes.windows[1], o->odd_windows);
  for (std::size_t k = 0; k < kOctet; ++k) {
    std::uint8_t* code = place.code + k * kLaneCodeBound;
    std::uint64_t& window = lanes.windows[k % 2][k / 2];
    RangeCoder coder(code + lanes.settled[k], window, lanes.range[k]);
    std::uint32_t literal = lanes.is_literal[k];
    for (std::size_t i = 0; i < 2; ++i) {
      const std::uint8_t byte = place.raw[k * kLaneNbytes + i];
      coder.EncodeByte(byte, literal, place.rows[k * kRowsPerLane + i]);
      literal = NextIsLiteral(literal);
    }
    window = coder.window();
    lanes.range[k] = coder.range();
    lanes.settled[k] = static_cast<std::uint32_t>(coder.out() - code);
  }
  o->range = Load(lanes.range);
  o->settled = Load(lanes.settled);
  o->even_windows = Load(lanes.windows[0]);
  o->odd_windows = Load(lanes.windows[1]);
}

// Like RangeCoder::Flush(). If a lane has shifted too far, returns false and changes nothing.
[[PYCKPT_AVX2, gnu::always_inline]] inline bool Flush(std::uint8_t* code, Octet* o) {
  constexpr int kFractionBits = kMostShift;
  const __m256i too_far = _mm256_cmpgt_epi32(o->shift, _mm256_set1_epi32(kMostShift));
  if (__builtin_expect(_mm256_movemask_epi8(too_far), 0) != 0) return false;

  const __m256i even = _mm256_add_epi64(
      o->even_windows,
      _mm256_add_epi64(_mm256_slli_epi64(Even(o->whole), kFractionBits), Even(o->fraction)));
  const __m256i odd = _mm256_add_epi64(
      o->odd_windows,
      _mm256_add_epi64(_mm256_slli_epi64(Odd(o->whole), kFractionBits), Odd(o->fraction)));

  alignas(32) std::array<std::uint32_t, kOctet> settled;
  Store(&settled, o->settled);
  // A window has overflowed if its top bit went from 1 to 0.
  const __m256i even_carry = _mm256_andnot_si256(even, o->even_windows);
  const __m256i odd_carry = _mm256_andnot_si256(odd, o->odd_windows);
  const __m256i carry = _mm256_or_si256(even_carry, odd_carry);
  if (__builtin_expect(_mm256_movemask_pd(_mm256_castsi256_pd(carry)), 0) != 0) {
    const int even_mask = _mm256_movemask_pd(_mm256_castsi256_pd(even_carry));
    const int odd_mask = _mm256_movemask_pd(_mm256_castsi256_pd(odd_carry));
    for (std::size_t k = 0; k < kOctet; ++k) {
      if (((k % 2 == 0 ? even_mask : odd_mask) >> k / 2 & 1) != 0) {
        Carry(code + k * kLaneCodeBound + settled[k] - 1);
      }
    }
  }

  const __m256i big_endian = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8));
  const __m256i even_bytes = _mm256_shuffle_epi8(even, big_endian);
  const __m256i odd_bytes = _mm256_shuffle_epi8(odd, big_endian);
  const std::array<__m128, 4> quarters = {_mm_castsi128_ps(_mm256_castsi256_si128(even_bytes)),
                                          _mm_castsi128_ps(_mm256_castsi256_si128(odd_bytes)),
                                          _mm_castsi128_ps(_mm256_extracti128_si256(even_bytes, 1)),
                                          _mm_castsi128_ps(_mm256_extracti128_si256(odd_bytes, 1))};
  for (std::size_t k = 0; k < kOctet; ++k) {
    auto* out = reinterpret_cast<__m64*>(code + k * kLaneCodeBound + settled[k] - 1);
    const __m128 from = quarters[k / 4 * 2 + k % 2];
    if (k % 4 < 2) {
      _mm_storel_pi(out, from);
    } else {
      _mm_storeh_pi(out, from);
    }
  }

  o->settled = _mm256_add_epi32(o->settled, _mm256_srli_epi32(o->shift, 3));
  o->even_windows = _mm256_sllv_epi64(even, Even(o->shift));
  o->odd_windows = _mm256_sllv_epi64(odd, Odd(o->shift));
  return true;
}

// Runs the rows of all lanes through the range coders. is_literal is the first lane's probability
// of "no match". In the other lanes it starts at its limit, which it reaches long before a lane
// ends.
[[PYCKPT_AVX2]] void EncodeRows(const std::uint8_t* raw, const ByteProbabilities* rows,
                                std::uint32_t is_literal, LaneCodes* codes) {
  std::array<Octet, kOctets> octets;
  for (Octet& o : octets) {
    o.range = _mm256_set1_epi32(-1);
    o.whole = o.fraction = o.shift = o.even_windows = o.odd_windows = _mm256_setzero_si256();
    o.settled = _mm256_set1_epi32(1);  // the zero byte that starts a code
    o.is_literal = _mm256_set1_epi32(kProbabilityOne - kExtreme);
  }
  octets[0].is_literal = _mm256_insert_epi32(octets[0].is_literal, static_cast<int>(is_literal), 0);
  for (std::size_t k = 0; k < kLanes; ++k) *codes->code(k) = 0;

  constexpr std::size_t kWord = 4;  // bytes that one gather loads for each lane
  const __m256i words = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                           _mm256_set1_epi32(int{kLaneNbytes}));
  for (std::size_t at = 0; at < kLaneNbytes; at += kWord) {
    std::array<__m256i, kOctets> bytes;
    for (std::size_t n = 0; n < kOctets; ++n) {
      const std::uint8_t* first = raw + n * kOctet * kLaneNbytes + at;
      bytes[n] = _mm256_i32gather_epi32(reinterpret_cast<const int*>(first), words, 1);
    }
#pragma GCC unroll 2
    for (std::size_t pair = 0; pair < kWord; pair += 2) {
      std::array<__m256i, kOctets> range;
      std::array<__m256i, kOctets> literal;
      for (std::size_t n = 0; n < kOctets; ++n) {
        range[n] = octets[n].range;
        literal[n] = octets[n].is_literal;
      }
#pragma GCC unroll 2
      for (std::size_t i = pair; i < pair + 2; ++i) {
        std::array<Columns, kOctets> columns;
        for (std::size_t n = 0; n < kOctets; ++n) {
          columns[n] = Transpose(rows + n * kOctet * kRowsPerLane + at + i);
          DecideLiteral(&octets[n]);
        }
        // The octets alternate, so that one computes while the other waits.
#pragma GCC unroll 8
        for (int bit = 0; bit < 8; ++bit) {
          for (std::size_t n = 0; n < kOctets; ++n) {
            const __m256i decisions =
                _mm256_slli_epi32(bytes[n], 24 - 8 * static_cast<int>(i) + bit);
            Decide(columns[n].probabilities[bit], decisions, &octets[n]);
          }
        }
      }
      for (std::size_t n = 0; n < kOctets; ++n) {
        Octet& o = octets[n];
        const Place place = {raw + n * kOctet * kLaneNbytes + at + pair,
                             rows + n * kOctet * kRowsPerLane + at + pair, codes->code(n * kOctet)};
        if (!Flush(place.code, &o)) EncodePairSlowly(place, range[n], literal[n], &o);
        o.whole = o.fraction = o.shift = _mm256_setzero_si256();
      }
    }
  }
  for (std::size_t n = 0; n < kOctets; ++n) {
    alignas(32) std::array<std::uint32_t, kOctet> settled;
    Store(&settled, octets[n].settled);
    for (std::size_t k = 0; k < kOctet; ++k) {
      codes->nbytes(n * kOctet + k) = settled[k] + RangeCoder::kUnsettledNbytes;
    }
  }
}

}  // namespace

void LaneEncoder::Encode(const std::uint8_t* raw, std::uint32_t previous, LiteralBits bits,
                         LiteralModel* model, LaneCodes* codes) {
  for (std::size_t k = 0; k < kLanes; ++k) {
    const std::uint8_t* lane = raw + k * kLaneNbytes;
    NoteProbabilities(lane, previous, bits, model, rows_.data() + k * kRowsPerLane);
    previous = lane[kLaneNbytes - 1];
  }
  EncodeRows(raw, rows_.data(), model->is_literal, codes);
  model->is_literal = kProbabilityOne - kExtreme;
}

}  // namespace pyckpt::xz

#else

#include <cstdlib>

// Never called, because UseAvx2() is false on this architecture.
void pyckpt::xz::LaneEncoder::Encode(const std::uint8_t*, std::uint32_t, LiteralBits, LiteralModel*,
                                     LaneCodes*) {
  std::abort();
}

#endif
