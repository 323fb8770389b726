// Sixteen lanes in several registers, for instruction sets with smaller ones. (The compiler would also split one vector
// of sixteen itself, but moves the parts through memory.)
#pragma once
#include <cstdint>
#include <cstring>

namespace NM_ISA {

#if defined(__AVX2__)
constexpr int PARTS = 2;
#else
constexpr int PARTS = 4;
#endif
typedef float f_part __attribute__((vector_size(64 / PARTS)));
typedef uint32_t u_part __attribute__((vector_size(64 / PARTS)));
typedef int32_t i_part __attribute__((vector_size(64 / PARTS)));

template <class P>
struct Wide {
  P part[PARTS];
};
typedef Wide<f_part> f16;
typedef Wide<u_part> u16;
typedef Wide<i_part> i16;

#define NM_EACH(RESULT, EXPRESSION)                                                  \
  RESULT out;                                                                        \
  _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) out.part[p] = EXPRESSION; \
  return out;

template <class P>
NM_INLINE Wide<P> operator+(Wide<P> a, Wide<P> b) { NM_EACH(Wide<P>, a.part[p] + b.part[p]) }
template <class P>
NM_INLINE Wide<P> operator-(Wide<P> a, Wide<P> b) { NM_EACH(Wide<P>, a.part[p] - b.part[p]) }
template <class P>
NM_INLINE Wide<P> operator*(Wide<P> a, Wide<P> b) { NM_EACH(Wide<P>, a.part[p] * b.part[p]) }
template <class P>
NM_INLINE Wide<P> operator/(Wide<P> a, Wide<P> b) { NM_EACH(Wide<P>, a.part[p] / b.part[p]) }
NM_INLINE f16 operator-(f16 a) { NM_EACH(f16, -a.part[p]) }
NM_INLINE i16 operator<(f16 a, f16 b) { NM_EACH(i16, a.part[p] < b.part[p]) }
NM_INLINE i16 operator>(f16 a, f16 b) { NM_EACH(i16, a.part[p] > b.part[p]) }
NM_INLINE u16 operator>>(u16 a, int count) { NM_EACH(u16, a.part[p] >> count) }
NM_INLINE u16 operator<<(u16 a, int count) { NM_EACH(u16, a.part[p] << count) }
NM_INLINE u16 operator+(u16 a, uint32_t b) { NM_EACH(u16, a.part[p] + b) }
NM_INLINE f16 operator-(float a, f16 b) { NM_EACH(f16, a - b.part[p]) }
NM_INLINE f16 operator+(float a, f16 b) { NM_EACH(f16, a + b.part[p]) }
NM_INLINE f16 operator*(f16 a, float b) { NM_EACH(f16, a.part[p] * b) }
NM_INLINE f16 operator/(float a, f16 b) { NM_EACH(f16, a / b.part[p]) }
NM_INLINE f16& operator+=(f16& a, f16 b) { return a = a + b; }
NM_INLINE f16 choose(i16 mask, f16 yes, f16 no) { NM_EACH(f16, mask.part[p] ? yes.part[p] : no.part[p]) }
NM_INLINE f16 fma(f16 a, f16 b, f16 c) { NM_EACH(f16, a.part[p] * b.part[p] + c.part[p]) }  // one instruction where there is one
NM_INLINE f16 all(float v) { NM_EACH(f16, v - f_part{}) }

// Part by part: the compiler would copy the whole in smaller pieces, and the next load would have to wait for them.
typedef f_part f_loose __attribute__((aligned(4), may_alias));
typedef u_part u_loose __attribute__((aligned(1), may_alias));
constexpr int LANES = 16 / PARTS;
NM_INLINE f16 load(const float* from) {
  NM_EACH(f16, *reinterpret_cast<const f_loose*>(from + p * LANES))
}
NM_INLINE u16 load_bytes(const char* from) {  // of any alignment
  NM_EACH(u16, *reinterpret_cast<const u_loose*>(from + p * LANES * 4))
}
NM_INLINE void store(float* to, f16 v) {
  _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) *reinterpret_cast<f_loose*>(to + p * LANES) = v.part[p];
}
NM_INLINE u16 bits_of(f16 v) { NM_EACH(u16, reinterpret_cast<u_part>(v.part[p])) }
NM_INLINE f16 float_of(u16 v) { NM_EACH(f16, reinterpret_cast<f_part>(v.part[p])) }

}  // namespace NM_ISA
