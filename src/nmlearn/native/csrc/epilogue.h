// What follows the sum: bias, residual, activation, and the store.
#pragma once
#include "job.h"
#include "simd.h"

namespace NM_ISA {

// exp to 2 units in the last place: 2^n times a Taylor polynomial on [-ln2/2, ln2/2].
NM_INLINE f16 exponential(f16 x) {
  const f16 lowest = all(-87.3f), highest = all(88.3f);
  x = choose(x < lowest, lowest, x);
  x = choose(x > highest, highest, x);
  const f16 round = all(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const f16 shifted = fma(x, all(1.44269504f), round);
  const f16 n = shifted - round;
  f16 r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  f16 p = all(1.0f / 720);
  p = fma(p, r, all(1.0f / 120));
  p = fma(p, r, all(1.0f / 24));
  p = fma(p, r, all(1.0f / 6));
  p = fma(p, r, all(0.5f));
  p = fma(p, r, all(1.0f));
  p = fma(p, r, all(1.0f));
  return p * float_of((bits_of(shifted) + 127) << 23);
}

// The error function, Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7), the formula PyTorch's own kernels use.
NM_INLINE f16 error_function(f16 x) {
  const f16 size = choose(x < f16{}, -x, x);
  const f16 t = 1.0f / fma(size, all(0.3275911f), all(1.0f));
  f16 p = all(1.061405429f);
  p = fma(p, t, all(-1.453152027f));
  p = fma(p, t, all(1.421413741f));
  p = fma(p, t, all(-0.284496736f));
  p = fma(p, t, all(0.254829592f));
  const f16 y = 1.0f - p * t * exponential(-size * size);
  return choose(x < f16{}, -y, y);
}

NM_INLINE f16 activate(f16 v, int32_t activation) {
  if (activation == RELU) return choose(v < f16{}, f16{}, v);  // NaN stays
  if (activation == SILU) return choose(v < all(-88.3f), f16{}, v / (1.0f + exponential(-v)));  // beyond the range of exponential
  if (activation == GELU) return v * 0.5f * (1.0f + error_function(v * 0.70710678f));
  return v;
}

// Sixteen (or `lanes`) adjacent values of y. (Inlined: a call would pass the vectors through memory in pieces.)
template <class Y>
NM_INLINE void finish(Y* y, f16 sum, f16 bias, const Y* residual, int32_t activation, int64_t lanes) {
  sum += bias;
  if (lanes >= 16) {
    if (residual) sum += load(residual);
    store(y, activate(sum, activation));
  } else {
    if (residual) sum += load_first(residual, lanes);
    store_first(y, activate(sum, activation), lanes);
  }
}

}  // namespace NM_ISA
