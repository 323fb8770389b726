// The C interface of the training step of LBC: splits all weights together into one share per thread.
#include <cstring>
#include <omp.h>

#include "job.h"

namespace {

constexpr int64_t LEAST = 1 << 16;  // values that are worth another thread

int64_t threads_for(int64_t values) {
  return larger(1, smaller(omp_get_max_threads(), values / LEAST));
}

// Steps values [from, to) of all tensors, numbered consecutively.
void score_share(const Kernels* k, const ScoreStep& step, const ScoreTensor* tensors, int64_t count, int64_t from,
                 int64_t to) {
  for (int64_t i = 0, start = 0; i < count && start < to; start += tensors[i++].size) {
    const int64_t a = larger(0, from - start), b = smaller(tensors[i].size, to - start);
    if (a < b) k->score_step(step, tensors[i], a, b);
  }
}

// The combinations of a pattern: their members one after another, and each as a bit set.
struct Combinations {
  int64_t count, n, m;
  const uint8_t* members;
  const uint64_t* sets;
};

constexpr int64_t MOST_COMBINATIONS = 256;

// The k-th smallest of n values, k from 0, by quickselect; overwrites them.
double select(double* values, int64_t n, int64_t k) {
  double above[MOST_COMBINATIONS];
  for (;;) {
    const double pivot = values[n / 2];
    int64_t below_count = 0, above_count = 0;
    for (int64_t i = 0; i < n; i++) {  // stores what it may discard again, which is cheaper than a branch
      const double value = values[i];
      values[below_count] = value;
      below_count += value < pivot;
      above[above_count] = value;
      above_count += value > pivot;
    }
    if (k >= below_count && k < n - above_count) return pivot;
    if (k < below_count) {
      n = below_count;
    } else {
      k -= n - above_count;
      n = above_count;
      memcpy(values, above, static_cast<size_t>(n) * sizeof(double));
    }
  }
}

// Removes the lowest-scored of one group until `survivors` are left; of equal ones the last. Sums in float64, where a few
// float32 terms add up without rounding. NaN counts as infinity.
void remove_from_group(const Combinations& all, const float* scores, uint8_t* alive, int64_t survivors) {
  double sums[MOST_COMBINATIONS], some[MOST_COMBINATIONS];
  int64_t left = 0;
  for (int64_t c = 0; c < all.count; c++) {
    double sum = 0;
    for (int64_t j = 0; j < all.n; j++) sum += static_cast<double>(scores[all.members[c * all.n + j]]);
    sums[c] = sum == sum ? sum : __builtin_inf();
    some[left] = sums[c];
    left += alive[c];
  }
  if (left <= survivors) return;
  const double bound = select(some, left, left - survivors - 1);  // the highest score that goes, perhaps not all that have it
  for (int64_t c = 0; c < all.count; c++) {
    const bool goes = sums[c] < bound && alive[c];
    alive[c] &= !goes;
    left -= goes;
  }
  for (int64_t c = all.count - 1; left > survivors; c--) {
    const bool goes = sums[c] == bound && alive[c];
    alive[c] &= !goes;
    left -= goes;
  }
}

void keep_of_group(const Combinations& all, const uint8_t* alive, uint8_t* kept) {
  uint64_t held = 0;
  for (int64_t c = 0; c < all.count; c++)
    if (alive[c]) held |= all.sets[c];
  for (int64_t j = 0; j < all.m; j++) kept[j] = held >> j & 1;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// One SGD step on the scores of `count` weights. Returns 0, or 1 without an instruction set.
int nm_score_step(const ScoreStep* step, const ScoreTensor* tensors, int64_t count) {
  const Kernels* k = chosen_kernels();
  if (!k) return 1;
  int64_t total = 0;
  for (int64_t i = 0; i < count; i++) total += tensors[i].size;
  const int64_t shares = threads_for(total);
  // A share ends at a multiple of 64 values, so that threads do not write to one cache line.
#pragma omp parallel for schedule(static) if (shares > 1) num_threads(static_cast<int>(shares))
  for (int64_t i = 0; i < shares; i++)
    score_share(k, *step, tensors, count, total * i / shares / 64 * 64,
                i + 1 == shares ? total : total * (i + 1) / shares / 64 * 64);
  return 0;
}

// x &= keep, values of 1, 2, 4 or 8 bytes, keep bits sign-extended. Returns 0, or 1 without an instruction set.
int nm_clear(void* x, const int8_t* keep, int64_t bytes, int64_t size) {
  const Kernels* k = chosen_kernels();
  if (!k) return 1;
  const int64_t shares = threads_for(size);
#pragma omp parallel for schedule(static) if (shares > 1) num_threads(static_cast<int>(shares))
  for (int64_t i = 0; i < shares; i++)
    k->clear(x, keep, bytes, size * i / shares / 64 * 64, i + 1 == shares ? size : size * (i + 1) / shares / 64 * 64);
  return 0;
}

// Leaves `survivors` combinations of each group alive ([groups, count] bytes) and reports which weights they contain
// (kept, [groups, m] bytes). Returns 0, or 1 if there are too many combinations.
int nm_remove(uint8_t* alive, uint8_t* kept, const float* scores, int64_t groups, int64_t survivors, int64_t count,
              int64_t n, int64_t m, const uint8_t* members, const uint64_t* sets) {
  if (count > MOST_COMBINATIONS) return 1;
  const Combinations all = {count, n, m, members, sets};
#pragma omp parallel for schedule(static) if (groups * count > LEAST)
  for (int64_t g = 0; g < groups; g++) {
    remove_from_group(all, scores + g * m, alive + g * count, survivors);
    keep_of_group(all, alive + g * count, kept + g * m);
  }
  return 0;
}

}  // extern "C"
#pragma GCC visibility pop
