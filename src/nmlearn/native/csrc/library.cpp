// The C interface: chooses the instruction set, splits a job into ranges, and runs them on torch's OpenMP threads. (The
// library links no OpenMP of its own and uses the one that torch has loaded.)
#include <cstdlib>
#include <cstring>
#include <omp.h>
#include <pthread.h>

#include "job.h"

namespace {

constexpr int64_t PANEL = 1 << 20;  // bytes of packed weights that stay in the second-level cache

const Kernels* chosen() {
  static const Kernels* const kernels = [] {
    const char* wanted = getenv("NMLEARN_ISA");
    const Kernels* all[] = {
#ifdef NM_X86
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512dq")
            ? &kernels_avx512
            : nullptr,
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels_avx2 : nullptr,
#endif
        &kernels_portable};
    for (const Kernels* k : all)
      if (k && (!wanted || !*wanted || !strcmp(wanted, k->name))) return k;
    return static_cast<const Kernels*>(nullptr);
  }();
  return kernels;
}

// One buffer per thread, kept for the next call and freed with its thread. (A thread_local object with a destructor would
// need the C++ run-time library.)
struct Buffer {
  int64_t size;
  char data[1];
};

pthread_key_t buffer_key;
void make_buffer_key() { pthread_key_create(&buffer_key, free); }

char* scratch_of_thread(int64_t bytes) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_buffer_key);
  Buffer* buffer = static_cast<Buffer*>(pthread_getspecific(buffer_key));
  if (!buffer || buffer->size < bytes) {
    free(buffer);
    buffer = static_cast<Buffer*>(malloc(sizeof(Buffer) + static_cast<size_t>(bytes)));
    if (buffer) buffer->size = bytes;
    pthread_setspecific(buffer_key, buffer);
  }
  return buffer ? buffer->data : nullptr;
}

int64_t part(int64_t total, int64_t i, int64_t parts) { return total * i / parts; }

}  // namespace

const Kernels* chosen_kernels() { return chosen(); }

#pragma GCC visibility push(default)
extern "C" {

int nm_abi() { return 5; }

// The chosen instruction set, or an empty string if this machine does not support that of NMLEARN_ISA.
const char* nm_isa() { return chosen() ? chosen()->name : ""; }

int nm_threads() { return omp_get_max_threads(); }

static int row_lanes(const Job* job) {
  const Kernels* k = chosen();
  if (!k) return 1;
  const Shape& s = job->shape;
  const int64_t all = tokens(s), blocks = ceil_div(s.rows, 16), threads = omp_get_max_threads();
  // Each thread gets a share of the tokens if there are enough for full register blocks, else a share of the rows; it
  // processes rows in panels that stay in its cache while the tokens pass.
  const int64_t block_bytes = larger(1, taps(s) * s.channels * s.n / s.m * 16 * 5);
  const int64_t by_tokens = all >= 32 * threads ? threads : 1;
  const int64_t by_rows = by_tokens == 1 ? smaller(threads, ceil_div(blocks, 2)) : 1;
  const int64_t panels = smaller(ceil_div(blocks, by_rows), larger(1, blocks * block_bytes / by_rows / PANEL));
  const int64_t tasks = s.groups * by_tokens * by_rows;
#pragma omp parallel for schedule(static) if (tasks > 1)
  for (int64_t i = 0; i < tasks; i++) {
    const int64_t g = i / (by_tokens * by_rows), t = i / by_rows % by_tokens, r = i % by_rows;
    const int64_t b0 = part(blocks, r, by_rows), b1 = part(blocks, r + 1, by_rows);
    for (int64_t p = 0; p < panels; p++)
      k->row_lanes(*job, g, part(all, t, by_tokens), part(all, t + 1, by_tokens), b0 + part(b1 - b0, p, panels),
                   b0 + part(b1 - b0, p + 1, panels));
  }
  return 0;
}

static int token_lanes(const Job* job) {
  const Kernels* k = chosen();
  if (!k) return 1;
  const Shape& s = job->shape;
  const int64_t all = ceil_div(tokens(s), 16), threads = omp_get_max_threads();
  const int64_t most = k->token_vectors(s);
  // Splitting tokens leaves threads idle if vectors do not divide evenly; splitting rows makes every thread load all
  // inputs. Approximate cycles for one vector of tokens (fewer at a time broadcast more weights).
  const double inputs = static_cast<double>(taps(s) * s.channels), outputs = static_cast<double>(s.rows);
  const double sums = 0.8 * inputs * outputs * static_cast<double>(s.n) / static_cast<double>(s.m);
  const auto multiply = [&](int64_t vectors) { return sums * (1 + 1.5 / static_cast<double>(smaller(most, vectors))); };
  const int64_t share = ceil_div(all, threads);
  const double of_tokens = static_cast<double>(share) * (multiply(share) + 12 * (inputs + outputs));
  const double of_rows =
      static_cast<double>(all) * ((multiply(all) + 12 * outputs) / static_cast<double>(threads) + 12 * inputs);
  const int64_t by_rows = 1.05 * of_rows < of_tokens ? smaller(threads, ceil_div(s.rows, 16)) : 1;
  const int64_t by_tokens = by_rows == 1 ? smaller(threads, all) : 1;
  const int64_t rows = ceil_div(s.rows, by_rows * 16) * 16;
  const int64_t at_once = larger(16, smaller(rows, PANEL / (most * 64) / 16 * 16));  // sums stay in cache
  const int64_t tasks = s.groups * by_tokens * by_rows;
  int failed = 0;
#pragma omp parallel for schedule(static) if (tasks > 1) reduction(| : failed)
  for (int64_t i = 0; i < tasks; i++) {
    const int64_t g = i / (by_tokens * by_rows), t = i / by_rows % by_tokens, r = i % by_rows;
    char* scratch = scratch_of_thread(k->token_scratch(s, most, at_once));
    if (!scratch) {
      failed = 1;
      continue;
    }
    for (int64_t r0 = r * rows, end = smaller(s.rows, r0 + rows); r0 < end; r0 += at_once)
      k->token_lanes(*job, g, part(all, t, by_tokens), part(all, t + 1, by_tokens), r0, smaller(end, r0 + at_once),
                     scratch);
  }
  return failed ? 2 : 0;
}

// Tokens come in groups of equal size, give or take one; [first, second) of them is group i.
static int64_t group_start(const Job* job, const Kernels* k, int64_t i) {
  const int64_t all = tokens(job->shape);
  return part(all, i, ceil_div(all, k->byte_tokens(job->shape)));
}

// Rounds the groups [g0, g1) into the buffer.
static void round_groups(const Job* job, const Kernels* k, int64_t g0, int64_t g1, uint8_t* q, Rounding* rounding) {
  const int64_t first = group_start(job, k, g0);
  for (int64_t g = g0; g < g1; g++) {
    const int64_t t = group_start(job, k, g), count = group_start(job, k, g + 1) - t;
    k->round_tokens(*job, t, count, q + (t - first) * byte_width(job->shape), rounding + (t - first));
  }
}

// Multiplies the rounded groups [g0, g1) by blocks of 32 rows [b0, b1), in panels that stay in the first-level cache while
// the tokens pass.
static void multiply_groups(const Job* job, const Kernels* k, int64_t g0, int64_t g1, int64_t b0, int64_t b1,
                            const uint8_t* q, const Rounding* rounding) {
  const int64_t first = group_start(job, k, g0);
  const int64_t block_bytes = larger(1, job->shape.channels * job->shape.n / job->shape.m * 48);
  const int64_t at_once = g1 - g0 == 1 ? b1 - b0 : larger(1, (20 << 10) / block_bytes);
  for (int64_t b = b0; b < b1; b += at_once)
    for (int64_t g = g0; g < g1; g++) {
      const int64_t t = group_start(job, k, g), count = group_start(job, k, g + 1) - t;
      k->byte_lanes(*job, t, count, b, smaller(b1, b + at_once), q + (t - first) * byte_width(job->shape), rounding + (t - first));
    }
}

static int byte_lanes(const Job* job) {
  const Kernels* k = chosen();
  if (!k) return 1;
  const Shape& s = job->shape;
  const int64_t all = tokens(s), width = byte_width(s), groups = ceil_div(all, k->byte_tokens(s));
  const int64_t blocks = ceil_div(s.rows, 32), threads = omp_get_max_threads();
  const auto bytes = [&](int64_t count) { return count * (width + static_cast<int64_t>(sizeof(Rounding))); };
  int failed = 0;
  if (all >= 32 * threads) {  // each thread rounds its own tokens, as many at a time as stay in its cache
    const int64_t at_once = larger(1, smaller(64, (128 << 10) / width) / k->byte_tokens(s));
#pragma omp parallel for schedule(static) if (threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < threads; i++) {
      const int64_t end = part(groups, i + 1, threads);
      char* scratch = scratch_of_thread(bytes(at_once * k->byte_tokens(s)));
      if (!scratch) {
        failed = 1;
        continue;
      }
      Rounding* rounding = reinterpret_cast<Rounding*>(scratch);
      uint8_t* q = reinterpret_cast<uint8_t*>(rounding + at_once * k->byte_tokens(s));
      for (int64_t g = part(groups, i, threads); g < end; g += at_once) {
        round_groups(job, k, g, smaller(end, g + at_once), q, rounding);
        multiply_groups(job, k, g, smaller(end, g + at_once), 0, blocks, q, rounding);
      }
    }
    return failed ? 2 : 0;
  }
  char* scratch = scratch_of_thread(bytes(all));
  if (!scratch) return 2;
  Rounding* rounding = reinterpret_cast<Rounding*>(scratch);
  uint8_t* q = reinterpret_cast<uint8_t*>(rounding + all);
  const int64_t by_rows = smaller(threads, blocks);
#pragma omp parallel for schedule(static) if (groups > 1 && by_rows > 1)
  for (int64_t g = 0; g < groups; g++) {
    const int64_t t = group_start(job, k, g);
    round_groups(job, k, g, g + 1, q + t * width, rounding + t);
  }
#pragma omp parallel for schedule(static) if (by_rows > 1)
  for (int64_t i = 0; i < by_rows; i++)
    multiply_groups(job, k, 0, groups, part(blocks, i, by_rows), part(blocks, i + 1, by_rows), q, rounding);
  return 0;
}

// One call: kernel 0 is row lanes, 1 token lanes, 2 byte lanes. Returns 0, 1 without an instruction set, 2 without memory.
int nm_run(int kernel, const Shape* shape, const void* x, const void* values, const void* index, const float* scale,
           const void* bias, const void* residual, void* y, const void* zeros) {
  const Job job = {*shape, x, values, index, scale, bias, residual, y, zeros};
  return kernel == 0 ? row_lanes(&job) : kernel == 1 ? token_lanes(&job) : byte_lanes(&job);
}

}  // extern "C"
#pragma GCC visibility pop
