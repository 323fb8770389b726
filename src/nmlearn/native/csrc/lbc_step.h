// The training step of LBC, elementwise: plain loops that the compiler vectorizes, so that memory is the limit.
//
// Rounding is that of the PyTorch path on the same instruction set, operation by operation: torch's vectorized kernels
// multiply and add with one rounding where the hardware can, and with two elsewhere.
#pragma once
#include "job.h"
#include "simd.h"

namespace NM_ISA {

static inline float multiply_add(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Zero in place of NaN and infinity, which scores must not learn from; a select, not a branch.
static inline float finite_or_zero(float x) { return __builtin_fabsf(x) <= __FLT_MAX__ ? x : 0.0f; }

constexpr int64_t BLOCK = 64;   // values of one round of prefetches: four cache lines of floats
constexpr int64_t AHEAD = 512;  // values between a prefetch and its use

static inline void prefetch_block(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, 2);
}

// One SGD step on a score, whose gradient is that of the weight times the weight.
template <bool DECAY>
static inline void score_value(const ScoreStep& step, float& s, float& v, float g, float w) {
  float change = multiply_add(g, w, v * step.momentum);
  if (DECAY) change = multiply_add(s, step.weight_decay, change);
  change = finite_or_zero(change);
  v = change;
  s = multiply_add(change, step.minus_lr, s);
}

template <typename T, bool DECAY>
static inline void score_block(const ScoreStep& given, float* __restrict s, float* __restrict v, const T* __restrict g,
                               const T* __restrict w, int64_t n) {
  const ScoreStep step = given;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) score_value<DECAY>(step, s[i], v[i], widen(g[i]), widen(w[i]));
}

// +0.0 where the bits of the mask are 0, the value itself where they are all set.
static inline float masked(float x, int8_t keep) {
  return __builtin_bit_cast(float, __builtin_bit_cast(int32_t, x) & static_cast<int32_t>(keep));
}

// torch.optim.SGD with momentum on the weights, after the same on their scores where there are any; pruned weights are
// cleared where there is a mask. An fma with zero is a product that the compiler does not fuse with the sum after it;
// nor does torch.
template <bool SCORE, bool DECAY, bool KEEP>
static inline void sgd_block(const ScoreStep& given, float* __restrict s, float* __restrict v, const float* __restrict g,
                             float* __restrict w, float* __restrict m, const int8_t* __restrict keep, int64_t n) {
  const ScoreStep step = given;
  const float minus_lr = step.minus_lr, w_momentum = step.weight_momentum, w_decay = step.weight_weight_decay;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    if (SCORE) score_value<DECAY>(step, s[i], v[i], g[i], w[i]);
    const float d = w_decay != 0 ? multiply_add(w[i], w_decay, g[i]) : g[i];
    const float moment = multiply_add(m[i], w_momentum, -0.0f) + d;
    m[i] = moment;
    const float next = multiply_add(moment, minus_lr, w[i]);
    w[i] = KEEP ? masked(next, keep[i]) : next;
  }
}

template <bool SCORE, bool DECAY, bool KEEP>
static void sgd_range(const ScoreStep& step, const ScoreTensor& t, int64_t from, int64_t to) {
  const float* g = static_cast<const float*>(t.grad);
  float* w = static_cast<float*>(t.weight);
  for (int64_t i = from; i < to; i += BLOCK) {
    const int64_t n = smaller(BLOCK, to - i);
    float *s = SCORE ? t.score + i : nullptr, *v = SCORE ? t.momentum + i : nullptr;
    const int8_t* keep = KEEP ? t.keep + i : nullptr;
    if (SCORE) {
      prefetch_block(s + AHEAD, BLOCK * 4);
      prefetch_block(v + AHEAD, BLOCK * 4);
    }
    if (KEEP) prefetch_block(keep + AHEAD, BLOCK);
    prefetch_block(g + i + AHEAD, BLOCK * 4);
    prefetch_block(w + i + AHEAD, BLOCK * 4);
    prefetch_block(t.weight_moment + i + AHEAD, BLOCK * 4);
    sgd_block<SCORE, DECAY, KEEP>(step, s, v, g + i, w + i, t.weight_moment + i, keep, n);
  }
}

template <bool KEEP>
static void sgd(const ScoreStep& step, const ScoreTensor& t, int64_t from, int64_t to) {
  if (!t.score) return sgd_range<false, false, KEEP>(step, t, from, to);
  if (step.weight_decay != 0) return sgd_range<true, true, KEEP>(step, t, from, to);
  sgd_range<true, false, KEEP>(step, t, from, to);
}

template <typename T, bool DECAY>
static void score_range(const ScoreStep& step, const ScoreTensor& t, int64_t from, int64_t to) {
  const T *g = static_cast<const T*>(t.grad), *w = static_cast<const T*>(t.weight);
  int64_t i = from;
  for (; i + BLOCK <= to; i += BLOCK) {  // prefetches past the end are harmless
    prefetch_block(t.score + i + AHEAD, BLOCK * 4);
    prefetch_block(t.momentum + i + AHEAD, BLOCK * 4);
    prefetch_block(g + i + AHEAD, BLOCK * sizeof(T));
    prefetch_block(w + i + AHEAD, BLOCK * sizeof(T));
    score_block<T, DECAY>(step, t.score + i, t.momentum + i, g + i, w + i, BLOCK);
  }
  score_block<T, DECAY>(step, t.score + i, t.momentum + i, g + i, w + i, to - i);
}

static void adamw(const ScoreStep& step, const ScoreTensor& t, int64_t from, int64_t to);  // adamw_step.h

// Without weight decay the PyTorch path leaves its term out, which matters to infinities and to the sign of zero.
static void score_step(const ScoreStep& step, const ScoreTensor& t, int64_t from, int64_t to) {
  const bool decay = step.weight_decay != 0, half = step.dtype == BF16;
  if (t.adamw) return adamw(step, t, from, to);
  if (t.weight_moment) return t.keep ? sgd<true>(step, t, from, to) : sgd<false>(step, t, from, to);
  if (half && decay) return score_range<uint16_t, true>(step, t, from, to);
  if (half) return score_range<uint16_t, false>(step, t, from, to);
  if (decay) return score_range<float, true>(step, t, from, to);
  score_range<float, false>(step, t, from, to);
}

// In most steps pruned weights have not moved: only blocks in which some did are written.
template <typename T>
static inline void clear_range(T* __restrict x, const int8_t* __restrict keep, int64_t from, int64_t to) {
  constexpr int64_t block = 512;
  for (int64_t start = from; start < to; start += block) {
    const int64_t end = start + block < to ? start + block : to;
    T lost = 0;
#pragma omp simd reduction(| : lost)
    for (int64_t i = start; i < end; i++) lost |= x[i] & ~static_cast<T>(keep[i]);  // keep's sign bit fills T
    if (!lost) continue;
#pragma omp simd
    for (int64_t i = start; i < end; i++) x[i] &= static_cast<T>(keep[i]);
  }
}

static void clear(void* x, const int8_t* keep, int64_t bytes, int64_t from, int64_t to) {
  switch (bytes) {
    case 1: return clear_range(static_cast<int8_t*>(x), keep, from, to);
    case 2: return clear_range(static_cast<int16_t*>(x), keep, from, to);
    case 4: return clear_range(static_cast<int32_t*>(x), keep, from, to);
    default: return clear_range(static_cast<int64_t*>(x), keep, from, to);
  }
}

}  // namespace NM_ISA
