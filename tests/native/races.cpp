// The kernels called from several threads at once, each call with threads of its own, for ThreadSanitizer: the library's
// exported functions, and results compared with those of a single caller. `make sanitize` builds and runs it.
//
// OpenMP's run-time library is not built for ThreadSanitizer, which would report a race at every end of a parallel region.
// The kernels take the OpenMP that the process has, so here they get this one: the few functions that they use, with
// threads that ThreadSanitizer knows.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "job.h"

namespace {

constexpr int CALLERS = 8, TEAM = 2, CALLS = 3;
thread_local int team_size = 1, own_number = 0;

using Run = int (*)(int, const Shape*, const void*, const void*, const void*, const float*, const void*, const void*,
                    void*, const void*);
using Step = int (*)(const ScoreStep*, const ScoreTensor*, int64_t);
using Clear = int (*)(void*, const int8_t*, int64_t, int64_t);
using Remove = int (*)(uint8_t*, uint8_t*, const float*, int64_t, int64_t, int64_t, int64_t, int64_t, const uint8_t*,
                       const uint64_t*);
using Bytes = std::vector<char>;
using Floats = std::vector<float>;

Floats random_floats(int64_t size, unsigned seed) {
  Floats x(static_cast<size_t>(size));
  for (float& value : x) value = static_cast<float>((seed = seed * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f;
  return x;
}

Bytes bytes_of(const Floats& x, bool half) {  // the upper half of a float is a bfloat16
  Bytes out(x.size() * (half ? 2 : 4));
  for (size_t i = 0; i < x.size(); i++)
    memcpy(&out[i * (half ? 2 : 4)], reinterpret_cast<const char*>(&x[i]) + (half ? 2 : 0), half ? 2 : 4);
  return out;
}

// A packed layer at 2:4: a linear layer, or a convolution with padding. All callers share it.
struct Layer {
  int kernel;
  Shape shape;
  Bytes x, values, bias, zeros, residual;
  std::vector<uint32_t> index;
  int64_t size;  // bytes of y

  Layer(int lanes, Dtype dtype, Images order, int64_t side, int64_t taps_across) : kernel(lanes) {
    const int64_t channels = 64, rows = 80, reach = taps_across / 2, pixels = 2 * side * side;
    shape = {2, side, side, side, side, channels, rows, 1, taps_across, taps_across, 1, 1, reach, reach, 1, 1, 2, 4, 64,
             GELU, dtype, order};
    const bool half = dtype == BF16;
    const int64_t kept = rows * taps_across * taps_across * channels / 2;
    x = bytes_of(random_floats(pixels * channels, 1), half);
    values = bytes_of(random_floats(kept, 2), half);
    bias = bytes_of(random_floats(rows, 3), half);
    residual = bytes_of(random_floats(pixels * rows, 4), half);
    zeros = bytes_of(Floats(static_cast<size_t>(channels)), half);
    index.assign(static_cast<size_t>(kept / (lanes ? 4 : 16) + 16), lanes ? 0x3f120a01u : 0x8d8d8d8du);
    size = static_cast<int64_t>(residual.size());
  }

  Bytes call(Run run) const {
    Bytes y(static_cast<size_t>(size));
    if (run(kernel, &shape, x.data(), values.data(), index.data(), nullptr, bias.data(), residual.data(), y.data(),
            zeros.data()))
      abort();
    return y;
  }
};

// A step of scores and weights, clearing, and a removal: each caller on tensors of its own, with a shared mask.
Bytes training(Step step, Clear clear, Remove remove, const std::vector<int8_t>& keep) {
  const int64_t size = static_cast<int64_t>(keep.size()), groups = size / 4;
  Floats score = random_floats(size, 5), momentum = random_floats(size, 6), weight = random_floats(size, 7);
  Floats moment = random_floats(size, 8);
  const Floats grad = random_floats(size, 9);
  const ScoreStep settings = {0.9f, 1e-4f, -0.1f, 0.9f, 1e-4f, F32};
  const ScoreTensor tensor = {size, score.data(), momentum.data(), grad.data(), weight.data(), moment.data(), keep.data()};
  if (step(&settings, &tensor, 1) || clear(momentum.data(), keep.data(), 4, size)) abort();
  const uint8_t members[] = {0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3};
  const uint64_t sets[] = {3, 5, 9, 6, 10, 12};
  std::vector<uint8_t> alive(static_cast<size_t>(groups * 6), 1), kept(static_cast<size_t>(size));
  if (remove(alive.data(), kept.data(), score.data(), groups, 2, 6, 2, 4, members, sets)) abort();
  Bytes all(kept.begin(), kept.end());
  for (const Floats* x : {&score, &momentum, &weight, &moment}) {
    const Bytes more = bytes_of(*x, false);
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}

void together(int count, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; i++) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

template <class F>
F function(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (!found) {
    fprintf(stderr, "races: %s\n", dlerror());
    exit(2);
  }
  return reinterpret_cast<F>(found);
}

}  // namespace

extern "C" {

int omp_get_max_threads() { return TEAM; }
int omp_get_num_threads() { return team_size; }
int omp_get_thread_num() { return own_number; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned wanted, unsigned) {
  const int size = wanted ? static_cast<int>(wanted) : TEAM;
  together(size, [&](int number) {
    team_size = size;
    own_number = number;
    body(data);
  });
}

}  // extern "C"

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) {
    fprintf(stderr, "races: %s\n", dlerror());
    return 2;
  }
  if (!*function<const char* (*)()>(library, "nm_isa")()) {
    printf("races: this processor has no such instruction set\n");
    return 0;
  }
  const Run run = function<Run>(library, "nm_run");
  const Step step = function<Step>(library, "nm_score_step");
  const Clear clear = function<Clear>(library, "nm_clear");
  const Remove remove = function<Remove>(library, "nm_remove");
  std::vector<Layer> layers;
  for (Dtype dtype : {F32, BF16})
    for (int64_t taps : {1, 3}) {
      layers.emplace_back(0, dtype, CHANNELS_LAST, 7, taps);
      layers.emplace_back(1, dtype, CHANNELS_LAST, 7, taps);
      layers.emplace_back(1, dtype, CHANNELS_FIRST, 7, taps);
    }
  std::vector<int8_t> keep(200'004);
  for (size_t i = 0; i < keep.size(); i++) keep[i] = i % 4 < 2 ? -1 : 0;

  // Eight callers at once, from the process's first call on: on one layer, then each on another.
  std::vector<std::vector<Bytes>> found(CALLERS);
  together(CALLERS, [&](int caller) {
    for (size_t i = 0; i < layers.size() * CALLS; i++) {
      const size_t other = i < layers.size() ? i : i + static_cast<size_t>(caller);
      found[static_cast<size_t>(caller)].push_back(layers[other % layers.size()].call(run));
    }
    found[static_cast<size_t>(caller)].push_back(training(step, clear, remove, keep));
  });
  int wrong = 0, calls = 0;
  for (size_t caller = 0; caller < CALLERS; caller++)
    for (size_t i = 0; i < layers.size() * CALLS; i++, calls++) {
      const size_t other = i < layers.size() ? i : i + caller;
      wrong += found[caller][i] != layers[other % layers.size()].call(run);
    }
  const Bytes alone = training(step, clear, remove, keep);
  for (const std::vector<Bytes>& some : found) wrong += some.back() != alone, calls++;
  printf("races: %d calls by %d threads at once, %d differ from a single caller's\n", calls, CALLERS, wrong);
  return wrong ? 1 : 0;
}
