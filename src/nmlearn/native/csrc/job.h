// What every kernel computes: y = activation(W * x + bias + residual), for a linear layer or a convolution.
//
// A linear layer is a convolution of 1x1 images: one token is one output pixel. K runs over (tap, channel), tap being
// the kernel position. The functions here are plain C++17 without standard library templates: each instruction set has
// its own copy in its own namespace, and a shared inline template would be linked from an arbitrary one of them.
#pragma once
#include <cstddef>
#include <cstdint>

enum Activation : int32_t { NONE = 0, RELU = 1, GELU = 2, SILU = 3 };
enum Dtype : int32_t { F32 = 0, BF16 = 1, INT8 = 2, BF16_INT8 = 3 };  // of x and y; only weights are int8
enum Images : int32_t { CHANNELS_LAST = 0, CHANNELS_FIRST = 1 };

// Passed from Python as a ctypes.Structure of the same fields: keep native/library.py in sync.
struct Shape {
  int64_t batch, height, width;          // input images
  int64_t out_height, out_width;         // output images; a token is one output pixel
  int64_t channels, rows, groups;        // input channels and output rows of one convolution group
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t n, m;                          // the pattern
  int64_t tile;                          // token lanes: inputs of one tile, a multiple of m
  int32_t activation, dtype, images;
};

struct Job {
  Shape shape;
  const void* x;
  const void* values;
  const void* index;
  const float* scale;                    // per row, int8 weights only
  const void* bias;                      // per row, in the dtype of y, or null
  const void* residual;                  // like y, or null
  void* y;
  const void* zeros;                     // enough zero bytes for one pixel: what padding reads
};

static inline int64_t taps(const Shape& s) { return s.kernel_h * s.kernel_w; }
static inline int64_t tokens(const Shape& s) { return s.batch * s.out_height * s.out_width; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Byte lanes: inputs of a rounded token, padded to four tables of 16; and how a token was rounded: to step * (q - zero).
static inline int64_t byte_width(const Shape& s) { return ceil_div(s.channels, 64) * 64; }
struct Rounding {
  float step;
  int32_t zero;
};

enum Part : int32_t { MOMENTS = 0, WEIGHTS = 1 };

// One SGD step on the scores of weights (native/training.py has the same fields).
struct ScoreStep {
  float momentum, weight_decay, minus_lr;
  float weight_momentum, weight_weight_decay;  // of the weights' own SGD, which has the same learning rate
  int32_t dtype;                         // of gradients and weights: F32 or BF16; scores are float32
  int32_t part;                          // of AdamW's step: MOMENTS (and scores), then WEIGHTS
};

// The numbers of one step of torch.optim.AdamW, after t steps with betas b1 and b2, learning rate lr and decay d.
struct AdamWStep {
  float shrink;                          // 1 - lr d
  float lerp, beta2, new_second;         // 1 - b1, b2, 1 - b2
  float root_bias, epsilon;              // sqrt(1 - b2^t)
  float minus_size;                      // -lr / (1 - b1^t)
};

struct ScoreTensor {
  int64_t size;
  float *score, *momentum;               // null: there are no scores, only the weights are stepped
  const void* grad;
  void* weight;
  float* weight_moment;                  // null: the weights are not stepped
  const int8_t* keep;                    // bits of the mask, for weights that are stepped; null: nothing is pruned
  float* second_moment;                  // AdamW's, weight_moment being the first
  float* root;                           // of the second moments, taken by torch between the parts
  const AdamWStep* adamw;                // null: weights that are stepped are stepped by SGD
};

// The kernels of one instruction set. Ranges are half-open; nothing here starts threads.
struct Kernels {
  const char* name;
  // Row lanes: tokens [t0, t1) of blocks of 16 rows [b0, b1) of convolution group g.
  void (*row_lanes)(const Job&, int64_t g, int64_t t0, int64_t t1, int64_t b0, int64_t b1);
  // Token lanes: vectors of 16 tokens [v0, v1), rows [r0, r1) of group g; scratch has token_scratch bytes.
  void (*token_lanes)(const Job&, int64_t g, int64_t v0, int64_t v1, int64_t r0, int64_t r1, char* scratch);
  int64_t (*token_vectors)(const Shape&);  // how many vectors of 16 tokens one call should process
  int64_t (*token_scratch)(const Shape&, int64_t vectors, int64_t rows);
  // Byte lanes: a group of at most byte_tokens tokens is rounded to q (byte_width bytes each), then multiplied by blocks
  // of 32 rows [b0, b1).
  int64_t (*byte_tokens)(const Shape&);
  void (*round_tokens)(const Job&, int64_t token, int64_t count, uint8_t* q, Rounding*);
  void (*byte_lanes)(const Job&, int64_t token, int64_t count, int64_t b0, int64_t b1, const uint8_t* q, const Rounding*);
  // The training step of LBC, values [from, to).
  void (*score_step)(const ScoreStep&, const ScoreTensor&, int64_t from, int64_t to);
  void (*clear)(void* x, const int8_t* keep, int64_t bytes, int64_t from, int64_t to);
};

const Kernels* chosen_kernels();  // for this machine and NMLEARN_ISA; null if it does not support that

extern const Kernels kernels_portable;
#ifdef NM_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif
