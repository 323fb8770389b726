// Byte lanes: int8 weights times activations that each call rounds to 7 bits, token by token; the sums are exact int32.
//
// Sixteen consecutive inputs of a token are a table. A code vector has 32 places: `nz` non-zeros of 32 / nz rows, each
// looked up in the same table. The kernel knows the pattern only as S, the non-zeros per 16 inputs:
//   S 1, 2     nz = S; code vector h reads table h
//   S from 3   nz = 4; ceil(S / 4) code vectors read the same table, the last of them filled with zero weights
// Eight rows by four non-zeros meet in one register, so 4 / nz looked-up vectors are interleaved before they are multiplied.
//   values [block][code vector / (4 / nz)][1 / nz of 32 rows][4 / nz code vectors][nz]
//   index  [block][code vector / 2][32 places], the even code vector's in the low four bits of a byte, the odd one's in the
//   high; a place is [row / 4 % 2][row / 8][row % 4][nz], as interleaving works in halves of a register
// A block is 32 / nz rows; blocks come in whole sets of 32 rows. The last rows and inputs are padded with zero weights.
// scale [2][rows]: the rows' scales, then the sums of their values.
#pragma once
#include <cmath>

#include "epilogue.h"

namespace NM_ISA {

constexpr int64_t BYTE_ROWS = 32;
constexpr int MOST_BYTE_TOKENS = 8;

static inline int64_t byte_density(const Shape& s) { return 16 * s.n / s.m; }
static inline int64_t code_vectors(const Shape& s) {
  const int64_t density = byte_density(s), tables = ceil_div(s.channels, 16);
  return density == 1 ? ceil_div(tables, 4) * 4 : ceil_div(tables * ceil_div(density, 4), 2) * 2;
}

// How many tokens a group has at most: as many as there are registers for the sums of a block.
static int64_t byte_tokens(const Shape& s) {
  const int64_t density = byte_density(s);
  return density == 1 ? 2 : density == 2 ? 4 : MOST_BYTE_TOKENS;
}

// Sixteen values times inverse, rounded to nearest even, plus zero; at most 127, and never negative.
#if defined(__AVX512F__)
NM_INLINE void round_sixteen(f16 v, float inverse, int32_t zero, uint8_t* to) {
  const __m512 steps = _mm512_mul_ps(reinterpret_cast<__m512>(v), _mm512_set1_ps(inverse));
  const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(steps), _mm512_set1_epi32(zero));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(q));
}
#elif defined(__AVX2__)
NM_INLINE void round_sixteen(f16 v, float inverse, int32_t zero, uint8_t* to) {
  const __m256 by = _mm256_set1_ps(inverse);
  const __m256i add = _mm256_set1_epi32(zero);
  const __m256i a = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(reinterpret_cast<__m256>(v.part[0]), by)), add);
  const __m256i b = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(reinterpret_cast<__m256>(v.part[1]), by)), add);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}
#else
NM_INLINE void round_sixteen(f16 v, float inverse, int32_t zero, uint8_t* to) {
  float some[16];
  store(some, v * inverse);
  for (int i = 0; i < 16; i++) to[i] = static_cast<uint8_t>(smaller(lrintf(some[i]) + zero, 127));
}
#endif

// One token to bytes, sixteen at every `stride`: q = min(127, round(x / step) + zero), so that the range from its least to
// its largest value, which includes 0, takes 127 steps. Halves, as the whole range may be larger than float32 has.
template <class X>
static Rounding round_token(const X* x, int64_t channels, int64_t width, int64_t stride, uint8_t* q) {
  const int64_t full = channels / 16, rest = channels % 16;
  f16 low = {}, high = {}, lost = {};
  for (int64_t i = 0; i < full + (rest != 0); i++) {
    const f16 v = i < full ? load(x + i * 16) : load_first(x + i * 16, rest);
    low = choose(v < low, v, low);
    high = choose(v > high, v, high);
    lost = fma(v, f16{}, lost);  // NaN after a value that is infinite or NaN
  }
  float lows[16], highs[16], any[16], least = 0, most = 0;
  store(lows, low);
  store(highs, high);
  store(any, lost);
  bool finite = true;
  for (int i = 0; i < 16; i++) {
    least = lows[i] < least ? lows[i] : least;
    most = highs[i] > most ? highs[i] : most;
    finite = finite && any[i] == 0;
  }
  const float range = most * 0.5f - least * 0.5f, half = range > 1e-30f ? range : 1e-30f, inverse = 63.5f / half;
  if (!finite) {  // the whole token's outputs are NaN
    for (int64_t i = 0; i < width / 16; i++) memset(q + i * stride, 0, 16);
    return {NAN, 0};
  }
  const int32_t zero = -static_cast<int32_t>(lrintf(least * inverse));
  for (int64_t i = 0; i < width / 16; i++) {
    const f16 v = i < full ? load(x + i * 16) : i == full && rest ? load_first(x + i * 16, rest) : f16{};
    round_sixteen(v, inverse, zero, q + i * stride);
  }
  return {half / 63.5f, zero};
}

// A group of tokens to q [table][token][16], which the kernels read from front to back.
static void round_tokens(const Job& job, int64_t token, int64_t count, uint8_t* q, Rounding* rounding) {
  const Shape& s = job.shape;
  for (int64_t t = 0; t < count; t++) {
    const int64_t from = (token + t) * s.channels, width = byte_width(s);
    if (s.dtype == BF16_INT8)
      rounding[t] = round_token(static_cast<const uint16_t*>(job.x) + from, s.channels, width, count * 16, q + t * 16);
    else
      rounding[t] = round_token(static_cast<const float*>(job.x) + from, s.channels, width, count * 16, q + t * 16);
  }
}

// The sums of one block: out [token][32 rows], of which it fills 32 / NZ. `H` code vectors, PER of them for each table.
#if defined(__AVX2__)
NM_INLINE __m256i bytes_at(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
NM_INLINE __m256i table_at(const uint8_t* q) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
}
// Pairs of products are at most 2 * 127 * 127 = 32258 in magnitude, which int16 holds: nothing saturates. Quadruples are
// summed in int32, which holds 2^17 of them.
NM_INLINE __m256i add_products(__m256i sum, __m256i x, __m256i w) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
}
NM_INLINE __m256i low_codes(__m256i codes) { return _mm256_and_si256(codes, _mm256_set1_epi8(15)); }
NM_INLINE __m256i high_codes(__m256i codes) { return low_codes(_mm256_srli_epi16(codes, 4)); }
NM_INLINE void store_sums(int32_t* to, __m256i sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sum); }

template <int T, int NZ, int PER>
static void sums_of_block(const uint8_t* q, const int8_t* w, const uint8_t* codes, int64_t vectors, int32_t* out) {
  constexpr int V = 4 / NZ;  // registers of eight rows
  __m256i sum[T][V];
#pragma GCC unroll 16
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sum[t][v] = _mm256_setzero_si256();
  for (int64_t h = 0; h < vectors; h += NZ == 1 ? 4 : 2, w += NZ == 1 ? 128 : 64, codes += NZ == 1 ? 64 : 32) {
    const __m256i code = bytes_at(codes), even = low_codes(code), odd = high_codes(code);
    const uint8_t *first = q + h / PER * (T * 16), *second = q + (h + 1) / PER * (T * 16);
    if constexpr (NZ == 4) {
      const __m256i w0 = bytes_at(w), w1 = bytes_at(w + 32);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        sum[t][0] = add_products(sum[t][0], _mm256_shuffle_epi8(table_at(first + t * 16), even), w0);
        sum[t][0] = add_products(sum[t][0], _mm256_shuffle_epi8(table_at(second + t * 16), odd), w1);
      }
    } else if constexpr (NZ == 2) {
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        const __m256i a = _mm256_shuffle_epi8(table_at(first + t * 16), even);
        const __m256i b = _mm256_shuffle_epi8(table_at(second + t * 16), odd);
        sum[t][0] = add_products(sum[t][0], _mm256_unpacklo_epi16(a, b), bytes_at(w));
        sum[t][1] = add_products(sum[t][1], _mm256_unpackhi_epi16(a, b), bytes_at(w + 32));
      }
    } else {
      const __m256i next = bytes_at(codes + 32), even2 = low_codes(next), odd2 = high_codes(next);
      const uint8_t *third = second + T * 16, *fourth = third + T * 16;
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        const __m256i a = _mm256_shuffle_epi8(table_at(first + t * 16), even);
        const __m256i b = _mm256_shuffle_epi8(table_at(second + t * 16), odd);
        const __m256i c = _mm256_shuffle_epi8(table_at(third + t * 16), even2);
        const __m256i d = _mm256_shuffle_epi8(table_at(fourth + t * 16), odd2);
        const __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
        sum[t][0] = add_products(sum[t][0], _mm256_unpacklo_epi16(ab, cd), bytes_at(w));
        sum[t][1] = add_products(sum[t][1], _mm256_unpackhi_epi16(ab, cd), bytes_at(w + 32));
        const __m256i AB = _mm256_unpackhi_epi8(a, b), CD = _mm256_unpackhi_epi8(c, d);
        sum[t][2] = add_products(sum[t][2], _mm256_unpacklo_epi16(AB, CD), bytes_at(w + 64));
        sum[t][3] = add_products(sum[t][3], _mm256_unpackhi_epi16(AB, CD), bytes_at(w + 96));
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store_sums(out + t * BYTE_ROWS + v * 8, sum[t][v]);
}
#else
template <int T, int NZ, int PER>
static void sums_of_block(const uint8_t* q, const int8_t* w, const uint8_t* codes, int64_t vectors, int32_t* out) {
  constexpr int V = 4 / NZ;
  for (int row = 0; row < 8 * V; row++) {
    int32_t sum[T] = {};
    const int64_t place = (row / 4 % 2 * 4 * V + row / 8 * 4 + row % 4) * NZ;
    for (int64_t h = 0; h < vectors; h++)
      for (int64_t i = 0; i < NZ; i++) {
        const int64_t code = codes[h / 2 * 32 + place + i] >> (h % 2 * 4) & 15;
        const int32_t weight = w[h / V * V * 32 + row * 4 + h % V * NZ + i];
        for (int t = 0; t < T; t++) sum[t] += weight * q[h / PER * T * 16 + t * 16 + code];
      }
    for (int t = 0; t < T; t++) out[t * BYTE_ROWS + row] = sum[t];
  }
}
#endif

template <class X>
NM_INLINE f16 load_rows(const X* p, int64_t lanes) { return lanes >= 16 ? load(p) : load_first(p, lanes); }

// Sums [token][32 rows] to y.
template <class X>
__attribute__((noinline)) static void finish_bytes(const Job& job, int64_t token, int64_t count, int64_t row,
                                                   const Rounding* rounding, const int32_t* sums) {
  const Shape& s = job.shape;
  for (int64_t end = smaller(row + BYTE_ROWS, s.rows); row < end; row += 16, sums += 16) {
    const int64_t lanes = smaller(16, s.rows - row);
    const f16 bias = job.bias ? load_rows(static_cast<const X*>(job.bias) + row, lanes) : f16{};
    const f16 scale = load_rows(job.scale + row, lanes);
    float of_values[16], exact[16];
    uint32_t weights[16];  // unsigned, as a wrong scale may overflow
    store(of_values, load_rows(job.scale + s.rows + row, lanes));
    for (int i = 0; i < 16; i++) weights[i] = static_cast<uint32_t>(static_cast<int32_t>(of_values[i]));
    for (int64_t t = 0; t < count; t++) {
      const uint32_t zero = static_cast<uint32_t>(rounding[t].zero);
      for (int i = 0; i < 16; i++)
        exact[i] = static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(sums[t * BYTE_ROWS + i]) - zero * weights[i]));
      const int64_t place = (token + t) * s.rows + row;
      const X* residual = job.residual ? static_cast<const X*>(job.residual) + place : nullptr;
      const f16 sum = load(exact) * (scale * rounding[t].step);
      finish(static_cast<X*>(job.y) + place, sum, bias, residual, s.activation, lanes);
    }
  }
}

template <int T, int NZ, int PER>
static void bytes_of_tokens(const Job& job, int64_t token, int64_t b0, int64_t b1, const uint8_t* q,
                            const Rounding* rounding) {
  const Shape& s = job.shape;
  const int64_t vectors = code_vectors(s);
  int32_t sums[T * BYTE_ROWS];
  for (int64_t b = b0; b < b1; b++) {
    if (s.rows - b * BYTE_ROWS < BYTE_ROWS) memset(sums, 0, sizeof sums);  // of rows that there are not
    const int8_t* w = static_cast<const int8_t*>(job.values) + b * NZ * vectors * 32;
    const uint8_t* codes = static_cast<const uint8_t*>(job.index) + b * NZ * vectors * 16;
    for (int part = 0; part < NZ && b * BYTE_ROWS + part * 32 / NZ < s.rows; part++)
      sums_of_block<T, NZ, PER>(q, w + part * vectors * 32, codes + part * vectors * 16, vectors, sums + part * 32 / NZ);
    if (s.dtype == BF16_INT8) finish_bytes<uint16_t>(job, token, T, b * BYTE_ROWS, rounding, sums);
    else finish_bytes<float>(job, token, T, b * BYTE_ROWS, rounding, sums);
  }
}

template <int T>
static void bytes_of_density(const Job& job, int64_t token, int64_t b0, int64_t b1, const uint8_t* q,
                             const Rounding* rounding) {
  const int64_t density = byte_density(job.shape);
  if constexpr (T <= 2)
    if (density == 1) return bytes_of_tokens<T, 1, 1>(job, token, b0, b1, q, rounding);
  if constexpr (T <= 4)
    if (density == 2) return bytes_of_tokens<T, 2, 1>(job, token, b0, b1, q, rounding);
  switch (ceil_div(density, 4)) {
    case 1: return bytes_of_tokens<T, 4, 1>(job, token, b0, b1, q, rounding);
    case 2: return bytes_of_tokens<T, 4, 2>(job, token, b0, b1, q, rounding);
    case 3: return bytes_of_tokens<T, 4, 3>(job, token, b0, b1, q, rounding);
    default: return bytes_of_tokens<T, 4, 4>(job, token, b0, b1, q, rounding);
  }
}

static void byte_lanes(const Job& job, int64_t token, int64_t count, int64_t b0, int64_t b1, const uint8_t* q,
                       const Rounding* rounding) {
  switch (count) {
    case 1: return bytes_of_density<1>(job, token, b0, b1, q, rounding);
    case 2: return bytes_of_density<2>(job, token, b0, b1, q, rounding);
    case 3: return bytes_of_density<3>(job, token, b0, b1, q, rounding);
    case 4: return bytes_of_density<4>(job, token, b0, b1, q, rounding);
    case 5: return bytes_of_density<5>(job, token, b0, b1, q, rounding);
    case 6: return bytes_of_density<6>(job, token, b0, b1, q, rounding);
    case 7: return bytes_of_density<7>(job, token, b0, b1, q, rounding);
    default: return bytes_of_density<8>(job, token, b0, b1, q, rounding);
  }
}

}  // namespace NM_ISA
