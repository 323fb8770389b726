// torch.optim.AdamW on the weights, after the step of their scores where there are any; pruned weights are cleared where
// there is a mask. Rounding is that of torch's step for single tensors, operation by operation.
//
// torch takes square roots with a library that rounds in its own way (about one in six differs by a bit) and is several
// times slower at zero, where the second moments of all pruned weights are. So it comes between two passes here: the
// first writes what roots are taken of, with 1 in place of 0, and the second reads the roots.
#pragma once
#include "lbc_step.h"

namespace NM_ISA {

static inline bool is_zero(float x) { return __builtin_bit_cast(int32_t, x) == 0; }

template <bool SCORE, bool DECAY>
static inline void moments_block(const ScoreStep& given, const AdamWStep& adamw, float* __restrict s,
                                 float* __restrict v, const float* __restrict g, const float* __restrict w,
                                 float* __restrict m, float* __restrict q, float* __restrict root, int64_t n) {
  const ScoreStep step = given;
  const AdamWStep a = adamw;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    if (SCORE) score_value<DECAY>(step, s[i], v[i], g[i], w[i]);
    m[i] = multiply_add(a.lerp, g[i] - m[i], m[i]);
    // An fma with zero is a product that the compiler does not fuse with the sum after it; nor does torch.
    const float second = multiply_add(a.new_second * g[i], g[i], multiply_add(q[i], a.beta2, -0.0f));
    q[i] = second;
    root[i] = is_zero(second) ? 1.0f : second;
  }
}

template <bool KEEP>
static inline void weights_block(const AdamWStep& adamw, float* __restrict w, const float* __restrict m,
                                 const float* __restrict q, const float* __restrict root,
                                 const int8_t* __restrict keep, int64_t n) {
  const AdamWStep a = adamw;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const float shrunk = multiply_add(w[i], a.shrink, -0.0f);
    const float next = shrunk + a.minus_size * m[i] / ((is_zero(q[i]) ? 0.0f : root[i]) / a.root_bias + a.epsilon);
    w[i] = KEEP ? masked(next, keep[i]) : next;
  }
}

template <bool SCORE, bool DECAY>
static void moments_range(const ScoreStep& step, const ScoreTensor& t, int64_t from, int64_t to) {
  float *s = SCORE ? t.score + from : nullptr, *v = SCORE ? t.momentum + from : nullptr;
  const float *g = static_cast<const float*>(t.grad) + from, *w = static_cast<const float*>(t.weight) + from;
  moments_block<SCORE, DECAY>(step, *t.adamw, s, v, g, w, t.weight_moment + from, t.second_moment + from,
                              t.root + from, to - from);
}

static void adamw(const ScoreStep& step, const ScoreTensor& t, int64_t from, int64_t to) {
  if (step.part == MOMENTS) {
    if (!t.score) return moments_range<false, false>(step, t, from, to);
    if (step.weight_decay != 0) return moments_range<true, true>(step, t, from, to);
    return moments_range<true, false>(step, t, from, to);
  }
  float *w = static_cast<float*>(t.weight) + from, *m = t.weight_moment + from, *q = t.second_moment + from;
  if (t.keep) return weights_block<true>(*t.adamw, w, m, q, t.root + from, t.keep + from, to - from);
  weights_block<false>(*t.adamw, w, m, q, t.root + from, nullptr, to - from);
}

}  // namespace NM_ISA
