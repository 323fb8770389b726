// Token lanes: sixteen tokens (output pixels) in the lanes of a register.
//
// A tile of inputs is transposed into the first-level cache, [input of the tile][tokens]; each packed weight is broadcast
// and multiplied by the line of the tile that its index names. The sums of a row stay in registers for one tile.
//   values [group][tile][row][slot], index the same as uint8 places in the tile; a tile has tile / m groups, the last
//   one of K = taps * channels what remains.
#pragma once
#include "epilogue.h"
#include "pixels.h"

namespace NM_ISA {

constexpr int64_t CACHE = NM_TILE_BYTES;  // how much of the first-level cache a tile may use
constexpr int64_t MOST_VECTORS = NM_VECTORS;

static int64_t token_vectors(const Shape& s) { return larger(1, smaller(MOST_VECTORS, CACHE / (s.tile * 64))); }

// A tile, the sums, one tile's weights as floats if they are not floats already, and where the inputs are; at least 256
// lines, so that no byte of an index, however wrong, points outside.
static int64_t token_scratch(const Shape& s, int64_t vectors, int64_t rows) {
  const int64_t weights = s.dtype == F32 ? 0 : rows * (s.tile / s.m * s.n) * 4;
  const int64_t pointers = s.images == CHANNELS_FIRST ? 0 : taps(s) * vectors * 16 * 8;
  return larger(256, s.tile + ceil_div(rows, 16) * 16) * vectors * 64 + weights + pointers + 128;
}

static inline const float* as_floats(const float* values, int64_t, float*) { return values; }
static inline const float* as_floats(const uint16_t* values, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 16) store_first(out + i, load_first(values + i, count - i), count - i);
  return out;
}

// Inputs [c, c + lines) of sixteen pixels.
static inline void transpose_lines(const float* const* pixel, int64_t c, int64_t lines, f16* out) {
  const float* row[16];
  float some[16][16];
  for (int64_t i = 0; i < 16; i++) row[i] = pixel[i] + c;
  for (int64_t i = 0; i < 16 && lines < 16; i++) {
    store(some[i], load_first(row[i], lines));
    row[i] = some[i];
  }
  transpose(row, out);
}
static inline void transpose_lines(const uint16_t* const* pixel, int64_t c, int64_t lines, f16* out) {
  const float* row[16];
  float some[16][16];
  for (int64_t i = 0; i < 16; i++) {
    store(some[i], load_first(pixel[i] + c, lines));
    row[i] = some[i];
  }
  transpose(row, out);
}

// Lines [k, k + count) of the tile for 16 tokens of a channels-last input, `wide` floats apart; pixel [tap][wide].
template <class X>
static void tile_lines_last(const Job& job, const X* const* pixel, int64_t k, int64_t count, int64_t wide, float* tile) {
  const int64_t channels = job.shape.channels;
  int64_t c = k % channels;
  pixel += k / channels * wide;
  for (int64_t done = 0; done < count;) {
    const int64_t lines = smaller(smaller(count - done, channels - c), 16);
    f16 out[16];
    transpose_lines(pixel, c, lines, out);
    for (int64_t i = 0; i < lines; i++) store(tile + (done + i) * wide, out[i]);
    done += lines;
    c += lines;
    if (c == channels) {
      c = 0;
      pixel += wide;
    }
  }
}

// Where all inputs of these vectors of tokens are, [tap][vector][16]; lanes without a token read what another one reads.
template <class X>
static void all_pointers(const Job& job, int64_t g, int64_t token, int64_t vectors, const X** pixel) {
  const Shape& s = job.shape;
  const int64_t wide = vectors * 16, live = smaller(wide, tokens(s) - token);
  pixel_pointers<X>(job, g, token, live, wide, pixel);
  for (int64_t tap = 0; tap < taps(s); tap++)
    for (int64_t i = live; i < wide; i++) pixel[tap * wide + i] = pixel[tap * wide];
}

// The same for a channels-first input, whose neighbouring pixels are already adjacent.
template <class X>
static void tile_lines_first(const Job& job, int64_t g, int64_t token, int64_t k, int64_t count, int64_t wide,
                             float* tile) {
  const Shape& s = job.shape;
  const int64_t live = smaller(16, tokens(s) - token), plane = s.height * s.width;
  const X* x = static_cast<const X*>(job.x) + g * s.channels * plane;
  const int64_t image = s.channels * s.groups * plane;
  Origin o[16];
  o[0] = origin(s, token);
  for (int64_t i = 1; i < live; i++) step(s, o[i] = o[i - 1]);
  // Sixteen pixels of one line of one image, without stride, are one load.
  const bool line = live == 16 && o[0].image == o[15].image && o[0].h == o[15].h && s.stride_w == 1;
  const bool flat = live == 16 && o[0].image == o[15].image && one_to_one(s);
  for (int64_t i = 0; i < count; i++) {
    const int64_t tap = (k + i) / s.channels, c = (k + i) % s.channels;
    const int64_t dh = tap / s.kernel_w * s.dilation_h, dw = tap % s.kernel_w * s.dilation_w;
    const X* p = x + c * plane;
    float* out = tile + i * wide;
    const int64_t h = o[0].h + dh, w = o[0].w + dw;
    if (flat || (line && h >= 0 && h < s.height && w >= 0 && w + 16 <= s.width)) {
      store(out, load(p + o[0].image * image + h * s.width + w));
      continue;
    }
    for (int64_t j = 0; j < 16; j++) {
      const int64_t hj = j < live ? o[j].h + dh : -1, wj = j < live ? o[j].w + dw : -1;
      const bool inside = hj >= 0 && hj < s.height && wj >= 0 && wj < s.width;
      out[j] = inside ? widen(p[o[j].image * image + hj * s.width + wj]) : 0.0f;
    }
  }
}

// What the next tile will read, fetched into the second-level cache a few lines at a time while this one computes: its
// sixteen times `vectors` streams are too many for the processor to predict.
struct Ahead {
  const char* first;        // of the next token to fetch for
  int64_t stride, bytes;    // from token to token; of one token's part
  int64_t left;             // tokens
  int64_t every;            // rows between two tokens
};

static inline void fetch(Ahead& ahead) {
  if (ahead.left <= 0) return;
  for (int64_t i = 0; i < ahead.bytes; i += 64) prefetch(ahead.first + i);
  ahead.first += ahead.stride;
  ahead.left--;
}

// R rows by V vectors of tokens over one tile.
template <int R, int V>
static inline void rows_by_vectors(const float* tile, const float* values, const uint8_t* index, int64_t slots, float* sums,
                                   bool first) {
  f16 sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) sum[r][v] = f16{};
  for (int64_t j = 0; j < slots; j++) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const f16 w = all(values[r * slots + j]);
      const float* line = tile + index[r * slots + j] * (V * 16L);
#pragma GCC unroll 16
      for (int v = 0; v < V; v++) sum[r][v] = fma(w, load(line + v * 16), sum[r][v]);
    }
  }
  // A tile's sums are added to the earlier ones at its end: rounding errors grow with the length of a chain of sums.
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) {
      float* to = sums + (r * V + v) * 16;
      store(to, first ? sum[r][v] : load(to) + sum[r][v]);
    }
}

template <int V>
static void all_rows(const float* tile, const float* values, const uint8_t* index, int64_t slots, int64_t rows,
                     float* sums, bool first, Ahead ahead) {
  constexpr int R = V >= NM_SUMS ? 1 : NM_SUMS / V;  // enough sums to hide the latency of a fused multiply-add
  int64_t row = 0;
  for (int64_t next = 0; row + R <= rows; row += R) {
    for (; next <= row; next += ahead.every) fetch(ahead);
    rows_by_vectors<R, V>(tile, values + row * slots, index + row * slots, slots, sums + row * V * 16, first);
  }
  for (; row < rows; row++)
    rows_by_vectors<1, V>(tile, values + row * slots, index + row * slots, slots, sums + row * V * 16, first);
}

static void rows_of_tile(int64_t vectors, const float* tile, const float* values, const uint8_t* index, int64_t slots,
                         int64_t rows, float* sums, bool first, const Ahead& ahead) {
  switch (vectors) {
#define NM_CASE(V) \
  case V: return all_rows<V>(tile, values, index, slots, rows, sums, first, ahead);
    NM_CASE(1) NM_CASE(2) NM_CASE(3)
#if NM_VECTORS >= 8
    NM_CASE(4) NM_CASE(5) NM_CASE(6) NM_CASE(7) NM_CASE(8)
#endif
#if NM_VECTORS >= 13
    NM_CASE(9) NM_CASE(10) NM_CASE(11) NM_CASE(12) NM_CASE(13)
#endif
#undef NM_CASE
  }
}

// Sums [row][vector][16] to y, 16 rows by 16 tokens at a time.
template <class X>
static void finish_last(const Job& job, int64_t g, int64_t token, int64_t vectors, int64_t r0, int64_t rows,
                        const float* sums) {
  const Shape& s = job.shape;
  const int64_t width = s.rows * s.groups;
  for (int64_t row = 0; row < rows; row += 16) {
    const int64_t lanes = smaller(16, rows - row), column = g * s.rows + r0 + row;
    const f16 bias = job.bias ? load_first(static_cast<const X*>(job.bias) + column, lanes) : f16{};
    for (int64_t v = 0; v < vectors; v++) {
      const float* from[16];
      f16 block[16];
      for (int64_t i = 0; i < 16; i++) from[i] = sums + ((row + i) * vectors + v) * 16;
      transpose(from, block);
      const int64_t here = token + v * 16, live = smaller(16, tokens(s) - here);
      for (int64_t t = 0; t < live; t++) {
        const int64_t place = (here + t) * width + column;
        const X* residual = job.residual ? static_cast<const X*>(job.residual) + place : nullptr;
        finish(static_cast<X*>(job.y) + place, block[t], bias, residual, s.activation, lanes);
      }
    }
  }
}

template <class X>
static void finish_first(const Job& job, int64_t g, int64_t token, int64_t vectors, int64_t r0, int64_t rows,
                         const float* sums) {
  const Shape& s = job.shape;
  const int64_t area = s.out_height * s.out_width, all_tokens = tokens(s);
  for (int64_t row = 0; row < rows; row++) {
    const int64_t channel = g * s.rows + r0 + row;
    const f16 bias = all(job.bias ? widen(static_cast<const X*>(job.bias)[channel]) : 0.0f);
    for (int64_t v = 0; v < vectors; v++) {
      // A vector may extend past the end of an image into the next one.
      for (int64_t t = token + v * 16, end = smaller(t + 16, all_tokens); t < end;) {
        const int64_t lanes = smaller(end - t, area - t % area);
        const int64_t place = (t / area * s.rows * s.groups + channel) * area + t % area;
        const float* from = sums + (row * vectors + v) * 16 + (t - token) % 16;
        const X* residual = job.residual ? static_cast<const X*>(job.residual) + place : nullptr;
        finish(static_cast<X*>(job.y) + place, load_first(from, lanes), bias, residual, s.activation, lanes);
        t += lanes;
      }
    }
  }
}

// Inputs [k, k + tile) of the tokens; of the next tokens when k is at the end.
template <class X>
static Ahead next_tile(const Job& job, int64_t g, int64_t v0, int64_t vectors, int64_t k, int64_t rows) {
  const Shape& s = job.shape;
  if (!one_to_one(s) || s.images == CHANNELS_FIRST) return {nullptr, 0, 0, 0, rows};
  int64_t token = v0 * 16;
  if (k >= s.channels) {
    k = 0;
    token += vectors * 16;
  }
  const int64_t pixel = s.channels * s.groups, count = larger(0, smaller(vectors * 16, tokens(s) - token));
  const X* first = static_cast<const X*>(job.x) + token * pixel + g * s.channels + k;
  return {reinterpret_cast<const char*>(first), pixel * static_cast<int64_t>(sizeof(X)),
          smaller(s.tile, s.channels - k) * static_cast<int64_t>(sizeof(X)), count, larger(1, rows / larger(1, count))};
}

template <class X>
static void vectors_of_rows(const Job& job, int64_t g, int64_t v0, int64_t vectors, int64_t r0, int64_t r1,
                            char* scratch) {
  const Shape& s = job.shape;
  const int64_t inputs = taps(s) * s.channels, all_slots = inputs / s.m * s.n;
  float* tile = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
  float* sums = tile + s.tile * vectors * 16;
  float* floats = sums + ceil_div(r1 - r0, 16) * 16 * vectors * 16;
  const int64_t own = s.dtype == F32 ? 0 : (r1 - r0) * (s.tile / s.m * s.n);
  const X** pixel = reinterpret_cast<const X**>(floats + ceil_div(own, 16) * 16);
  if (s.images == CHANNELS_LAST) all_pointers<X>(job, g, v0 * 16, vectors, pixel);
  const X* values = static_cast<const X*>(job.values) + g * s.rows * all_slots;
  const uint8_t* index = static_cast<const uint8_t*>(job.index) + g * s.rows * all_slots;
  for (int64_t k = 0; k < inputs; k += s.tile) {
    const int64_t count = smaller(s.tile, inputs - k), slots = count / s.m * s.n;
    for (int64_t v = 0; v < vectors; v++) {
      float* line = tile + v * 16;
      if (s.images == CHANNELS_FIRST) tile_lines_first<X>(job, g, (v0 + v) * 16, k, count, vectors * 16, line);
      else tile_lines_last<X>(job, pixel + v * 16, k, count, vectors * 16, line);
    }
    const Ahead ahead = next_tile<X>(job, g, v0, vectors, k + count, r1 - r0);
    const float* weights = as_floats(values + r0 * slots, (r1 - r0) * slots, floats);
    rows_of_tile(vectors, tile, weights, index + r0 * slots, slots, r1 - r0, sums, k == 0, ahead);
    values += s.rows * slots;
    index += s.rows * slots;
  }
  const auto last = s.images == CHANNELS_FIRST ? finish_first<X> : finish_last<X>;
  last(job, g, v0 * 16, vectors, r0, r1 - r0, sums);
}

template <class X>
static __attribute__((noinline)) void token_lanes_of(const Job& job, int64_t g, int64_t v0, int64_t v1, int64_t r0, int64_t r1, char* scratch) {
  while (v0 < v1) {
    const int64_t left = v1 - v0, parts = ceil_div(left, token_vectors(job.shape)), take = ceil_div(left, parts);
    vectors_of_rows<X>(job, g, v0, take, r0, r1, scratch);
    v0 += take;
  }
}

}  // namespace NM_ISA
