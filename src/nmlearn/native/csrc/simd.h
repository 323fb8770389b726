// Sixteen floats, whatever the instruction set: zmm, two ymm, or what the compiler makes of them.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define NM_INLINE static inline __attribute__((always_inline))
#if !defined(__AVX512F__)
#include "wide.h"
#endif

namespace NM_ISA {

#if defined(__AVX512F__)
typedef float f16 __attribute__((vector_size(64)));
typedef float f16_loose __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16_bytes __attribute__((vector_size(64), aligned(1), may_alias));

NM_INLINE f16 load(const float* p) { return *reinterpret_cast<const f16_loose*>(p); }
NM_INLINE void store(float* p, f16 v) { *reinterpret_cast<f16_loose*>(p) = v; }
NM_INLINE f16 all(float v) { return v - f16{}; }
NM_INLINE f16 choose(i16 mask, f16 yes, f16 no) { return mask ? yes : no; }
NM_INLINE u16 bits_of(f16 v) { return reinterpret_cast<u16>(v); }
NM_INLINE f16 float_of(u16 v) { return reinterpret_cast<f16>(v); }
NM_INLINE u16 load_bytes(const char* p) { return *reinterpret_cast<const u16_bytes*>(p); }  // of any alignment
#endif

#if defined(__AVX512F__)
NM_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1); }
NM_INLINE f16 load_first(const float* p, int64_t n) {
  return reinterpret_cast<f16>(_mm512_maskz_loadu_ps(first_lanes(n), p));
}
NM_INLINE void store_first(float* p, f16 v, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), reinterpret_cast<__m512>(v));
}
NM_INLINE f16 fma(f16 a, f16 b, f16 c) {
  return reinterpret_cast<f16>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
}
#else
NM_INLINE f16 load_first(const float* p, int64_t n) {
  float some[16] = {0};
  memcpy(some, p, static_cast<size_t>(n < 16 ? n : 16) * sizeof(float));
  return load(some);
}
NM_INLINE void store_first(float* p, f16 v, int64_t n) {
  float some[16];
  store(some, v);
  memcpy(p, some, static_cast<size_t>(n < 16 ? n : 16) * sizeof(float));
}
#endif

// A table of 16 consecutive activations, looked up by the low four bits of each lane; or a quarter of it, known to the
// caller, by the low two bits of each lane after place_in.
#if defined(__AVX512F__)
struct Table {
  __m512 all;
};
NM_INLINE Table table(f16 v) { return {reinterpret_cast<__m512>(v)}; }
NM_INLINE f16 look_up(const Table& t, u16 index) {
  return reinterpret_cast<f16>(_mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), t.all));
}
NM_INLINE u16 place_in(int quarter, u16 codes) {  // (codes & 3) | 4 * quarter in one instruction
  return reinterpret_cast<u16>(_mm512_ternarylogic_epi32(reinterpret_cast<__m512i>(codes), _mm512_set1_epi32(3),
                                                         _mm512_set1_epi32(4 * quarter), 0xea));
}
NM_INLINE f16 look_up_in(const Table& t, int, u16 place) { return look_up(t, place); }
#elif defined(__AVX2__)
struct Table {
  __m256 low, high;
  float all[16];  // a quarter is read from here into both halves, which needs no shuffle
};
NM_INLINE Table table(f16 v) {
  Table t;
  t.low = reinterpret_cast<__m256>(v.part[0]);
  t.high = reinterpret_cast<__m256>(v.part[1]);
  store(t.all, v);
  return t;
}
NM_INLINE f_part half_look_up(const Table& t, u_part lanes) {
  const __m256i index = reinterpret_cast<__m256i>(lanes);
  const __m256 low = _mm256_permutevar8x32_ps(t.low, index), high = _mm256_permutevar8x32_ps(t.high, index);
  const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // bit 3 chooses the half
  return reinterpret_cast<f_part>(_mm256_blendv_ps(low, high, upper));
}
NM_INLINE f16 look_up(const Table& t, u16 index) {
  return {{half_look_up(t, index.part[0]), half_look_up(t, index.part[1])}};
}
NM_INLINE u16 place_in(int, u16 codes) { return codes; }
NM_INLINE f16 look_up_in(const Table& t, int quarter, u16 place) {
  const __m256 both = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(t.all + 4 * quarter));
  f16 out;
  for (int p = 0; p < 2; p++)
    out.part[p] = reinterpret_cast<f_part>(_mm256_permutevar_ps(both, reinterpret_cast<__m256i>(place.part[p])));
  return out;
}
#else
struct Table {
  float all[16];
};
NM_INLINE Table table(f16 v) {
  Table t;
  store(t.all, v);
  return t;
}
NM_INLINE f16 look_up(const Table& t, u16 index) {
  uint32_t at[16];
  float out[16];
  memcpy(at, &index, sizeof at);
  for (int i = 0; i < 16; i++) out[i] = t.all[at[i] & 15];
  return load(out);
}
NM_INLINE u16 place_in(int, u16 codes) { return codes; }
NM_INLINE f16 look_up_in(const Table& t, int quarter, u16 place) {
  uint32_t at[16];
  float out[16];
  memcpy(at, &place, sizeof at);
  for (int i = 0; i < 16; i++) out[i] = t.all[4 * quarter + (at[i] & 3)];
  return load(out);
}
#endif

// bfloat16 is the upper half of a float32; rounding is to nearest even, and NaN stays NaN.
NM_INLINE float widen(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}
NM_INLINE float widen(float value) { return value; }
NM_INLINE uint16_t narrow(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__AVX512F__)
NM_INLINE f16 load_first(const uint16_t* p, int64_t n) {
  const __m256i half = _mm256_maskz_loadu_epi16(first_lanes(n), p);
  return reinterpret_cast<f16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
NM_INLINE void store_first(uint16_t* p, f16 v, int64_t n) {
  const __m512i bits = reinterpret_cast<__m512i>(v);
  const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), reinterpret_cast<__m512>(v), _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtepi32_epi16(rounded));
}
#else
NM_INLINE f16 load_first(const uint16_t* p, int64_t n) {
  float out[16] = {0};
  for (int i = 0; i < (n < 16 ? n : 16); i++) out[i] = widen(p[i]);
  return load(out);
}
NM_INLINE void store_first(uint16_t* p, f16 v, int64_t n) {
  float some[16];
  store(some, v);
  for (int i = 0; i < (n < 16 ? n : 16); i++) p[i] = narrow(some[i]);
}
#endif
NM_INLINE f16 load(const uint16_t* p) { return load_first(p, 16); }
NM_INLINE void store(uint16_t* p, f16 v) { store_first(p, v, 16); }

NM_INLINE f16 load(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<f16>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
#else
  float out[16];
  for (int i = 0; i < 16; i++) out[i] = p[i];
  return load(out);
#endif
}

// Transposes 16x16: out[k] has element k of each of sixteen rows.
#if defined(__AVX512F__)
// Quarters of four rows go into one register by loads that insert, which need no shuffle port; what remains is a 4x4
// transpose inside each quarter.
template <int J>
NM_INLINE void transpose_quarter(const float* const* row, f16* out) {
  __m512 z[4];
  for (int i = 0; i < 4; i++) {
    z[i] = _mm512_castps128_ps512(_mm_loadu_ps(row[i] + 4 * J));
    z[i] = _mm512_insertf32x4(z[i], _mm_loadu_ps(row[i + 4] + 4 * J), 1);
    z[i] = _mm512_insertf32x4(z[i], _mm_loadu_ps(row[i + 8] + 4 * J), 2);
    z[i] = _mm512_insertf32x4(z[i], _mm_loadu_ps(row[i + 12] + 4 * J), 3);
  }
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(z[0], z[1]));
  const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(z[0], z[1]));
  const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(z[2], z[3]));
  const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(z[2], z[3]));
  out[4 * J] = reinterpret_cast<f16>(_mm512_unpacklo_pd(a, c));
  out[4 * J + 1] = reinterpret_cast<f16>(_mm512_unpackhi_pd(a, c));
  out[4 * J + 2] = reinterpret_cast<f16>(_mm512_unpacklo_pd(b, d));
  out[4 * J + 3] = reinterpret_cast<f16>(_mm512_unpackhi_pd(b, d));
}
NM_INLINE void transpose(const float* const* row, f16* out) {
  transpose_quarter<0>(row, out);
  transpose_quarter<1>(row, out);
  transpose_quarter<2>(row, out);
  transpose_quarter<3>(row, out);
}
#else
NM_INLINE void transpose(const float* const* row, f16* out) {
  float all[16][16];
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) all[j][i] = row[i][j];
  for (int i = 0; i < 16; i++) out[i] = load(all[i]);
}
#endif

NM_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace NM_ISA
