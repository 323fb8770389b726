// Row lanes: sixteen output rows in the lanes of a register.
//
// Sixteen consecutive inputs of one token are a table; each row's lane looks its input up and multiplies it by its packed
// weight. The kernel knows the pattern only as S, the non-zeros per 16 inputs, so that 2:4, 4:8 and 8:16 are one case.
//   values [group][row block][step][16 rows], index [group][row block][step / 8][16 rows], 4 bits a step from the low end,
//   plus 16 words
// with S steps for every (tap, 16 channels); the last rows and channels are padded with zero weights. Where M divides 4 a
// step's quarter of the table is known from its number, and 2 bits a step give the rest: index [...][step / 16][16 rows].
#pragma once
#include "epilogue.h"
#include "pixels.h"

namespace NM_ISA {

constexpr int64_t CHAIN = 64;
constexpr int64_t AHEAD_BYTES = 2048, WORDS_AHEAD = 64;

static inline int64_t steps_of(const Shape& s) { return taps(s) * ceil_div(s.channels, 16) * (16 * s.n / s.m); }

// Sixteen words of codes, shifted right by this many bytes; the bits shifted in are another lane's or, after the last
// lane, the next word's or the index's padding, and never used.
static inline u16 load_codes(const uint32_t* index, int64_t bytes) {
  return load_bytes(reinterpret_cast<const char*>(index) + bytes);
}

// Sums [block][token][16 rows] to y; one copy of this code for all the sizes below.
template <class X>
__attribute__((noinline)) static void finish_rows(const Job& job, int64_t g, int64_t token, int64_t count,
                                                  int64_t block, int64_t blocks, const float* sums) {
  const Shape& s = job.shape;
  const int64_t width = s.rows * s.groups;
  for (int64_t r = 0; r < blocks; r++) {
    const int64_t row = (block + r) * 16, lanes = smaller(16, s.rows - row), column = g * s.rows + row;
    const f16 bias = job.bias ? load_first(static_cast<const X*>(job.bias) + column, lanes) : f16{};
    const f16 scale = job.scale ? load_first(job.scale + column, lanes) : all(1.0f);
    for (int64_t t = 0; t < count; t++, sums += 16) {
      const int64_t place = (token + t) * width + column;
      const X* residual = job.residual ? static_cast<const X*>(job.residual) + place : nullptr;
      const f16 sum = job.scale ? load(sums) * scale : load(sums);
      finish(static_cast<X*>(job.y) + place, sum, bias, residual, s.activation, lanes);
    }
  }
}

// R blocks of 16 rows by T tokens. S = 0 stands for any number of steps; QUADS for codes of 2 bits.
template <int R, int T, int S, bool QUADS, class X, class W>
static void rows_by_tokens(const Job& job, int64_t g, int64_t token, int64_t block, const X* const* pixel) {
  const Shape& s = job.shape;
  constexpr int bits = QUADS ? 2 : 4, of_byte = 8 / bits, of_word = 32 / bits;  // of a code; codes
  const int64_t steps = steps_of(s), words = ceil_div(steps, of_word), blocks = ceil_div(s.rows, 16);
  const int64_t per_table = S ? S : 16 * s.n / s.m, full = s.channels / 16, rest = s.channels % 16;
  const W* values = static_cast<const W*>(job.values) + (g * blocks + block) * steps * 16;
  const uint32_t* index = static_cast<const uint32_t*>(job.index) + (g * blocks + block) * words * 16;
  f16 sum[R][T];
  u16 at[R] = {};  // the first codes of a byte are loaded, as a load can start there; the others are these, shifted
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) sum[r][t] = f16{};
  // Every few steps the sums are added to totals and reset: rounding errors grow with the length of a chain of sums.
  float total[R * T * 16];
  int64_t step = 0, turn = CHAIN;
  const auto add_up = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
      for (int t = 0; t < T; t++) {
        float* to = total + (r * T + t) * 16;
        store(to, turn == CHAIN ? sum[r][t] : load(to) + sum[r][t]);
        sum[r][t] = f16{};
      }
    turn = step + CHAIN;
  };
  const auto take = [&](const Table(&tables)[T], int64_t i, int quarter) __attribute__((always_inline)) {
    const bool loads = S && S % of_byte == 0 ? i % of_byte == 0 : step % of_byte == 0;
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      at[r] = loads ? load_codes(index + (r * words + step / of_word) * 16, step % of_word / of_byte) : at[r] >> bits;
      const f16 w = load(values + (r * steps + step) * 16);
      // One or two tokens wait only for the weights: prefetch them before the processor would.
      if (T <= 2 && loads) prefetch(index + (r * words + step / of_word) * 16 + WORDS_AHEAD);
      if (T <= 2) prefetch(reinterpret_cast<const char*>(values + (r * steps + step) * 16) + AHEAD_BYTES);
      const auto place = QUADS ? place_in(quarter, at[r]) : at[r];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++)
        sum[r][t] = fma(w, QUADS ? look_up_in(tables[t], quarter, place) : look_up(tables[t], place), sum[r][t]);
    }
    step++;
  };
  const auto multiply = [&](const Table(&tables)[T]) __attribute__((always_inline)) {
    if constexpr (QUADS) {
#pragma GCC unroll 4
      for (int quarter = 0; quarter < 4; quarter++)
#pragma GCC unroll 2
        for (int64_t i = 0; i < per_table / 4; i++) take(tables, quarter * (per_table / 4) + i, quarter);
    } else {
#pragma GCC unroll 8
      for (int64_t i = 0; i < per_table; i++) take(tables, i, 0);
    }
  };
  for (int64_t tap = 0; tap < taps(s); tap++, pixel += T) {
    Table tables[T];
    for (int64_t c = 0; c < full; c++) {
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) tables[t] = table(load(pixel[t] + c * 16));
      multiply(tables);
      if (step >= turn) add_up();
    }
    if (rest) {
#pragma GCC unroll 16
      for (int t = 0; t < T; t++) tables[t] = table(load_first(pixel[t] + full * 16, rest));
      multiply(tables);
    }
  }
  add_up();
  finish_rows<X>(job, g, token, T, block, R, total);
}

template <int T, int S, bool QUADS, class X, class W>
static void blocks_by_tokens(const Job& job, int64_t g, int64_t token, int64_t b0, int64_t b1) {
  constexpr int R = T == 1 ? 4 : 2;  // enough sums to hide the latency of a fused multiply-add
  constexpr int KNOWN = sizeof(W) == 4 || T == 1 ? S : 0;  // only where it pays: each is a copy of the code
  const X* pixel[MOST_TAPS * T];
  pixel_pointers<X>(job, g, token, T, T, pixel);
  int64_t block = b0;
  for (; block + R <= b1; block += R) rows_by_tokens<R, T, KNOWN, QUADS, X, W>(job, g, token, block, pixel);
  for (; block < b1; block++) rows_by_tokens<1, T, 0, QUADS, X, W>(job, g, token, block, pixel);
}

template <int S, bool QUADS, class X, class W>
static void tokens_of_blocks(const Job& job, int64_t g, int64_t t0, int64_t t1, int64_t b0, int64_t b1) {
  constexpr int64_t most = sizeof(W) == 1 ? 4 : NM_TOKENS;  // int8 weights are for few tokens
  while (t0 < t1) {
    // Balanced blocks: 9 tokens are 5 + 4, not 8 + 1: a block of one token reads all weights for that one.
    const int64_t left = t1 - t0, parts = ceil_div(left, most), take = ceil_div(left, parts);
    switch (take) {
      case 1: blocks_by_tokens<1, S, QUADS, X, W>(job, g, t0, b0, b1); break;
      case 2: blocks_by_tokens<2, S, QUADS, X, W>(job, g, t0, b0, b1); break;
      case 3: blocks_by_tokens<3, S, QUADS, X, W>(job, g, t0, b0, b1); break;
      case 4: blocks_by_tokens<4, S, QUADS, X, W>(job, g, t0, b0, b1); break;
      default:
        if constexpr (most > 4) {
          if (take == 5) blocks_by_tokens<5, S, QUADS, X, W>(job, g, t0, b0, b1);
          if (take == 6) blocks_by_tokens<6, S, QUADS, X, W>(job, g, t0, b0, b1);
          if (take == 7) blocks_by_tokens<7, S, QUADS, X, W>(job, g, t0, b0, b1);
          if (take == 8) blocks_by_tokens<8, S, QUADS, X, W>(job, g, t0, b0, b1);
        }
    }
    t0 += take;
  }
}

template <class X, class W>
static void row_lanes_of(const Job& job, int64_t g, int64_t t0, int64_t t1, int64_t b0, int64_t b1) {
  const int64_t steps = 16 * job.shape.n / job.shape.m;  // the common numbers are compile-time constants
  if (4 % job.shape.m == 0) {
    switch (steps) {
#if NM_STEPS
      case 4: return tokens_of_blocks<4, true, X, W>(job, g, t0, t1, b0, b1);
      case 8: return tokens_of_blocks<8, true, X, W>(job, g, t0, t1, b0, b1);
#endif
      default: return tokens_of_blocks<0, true, X, W>(job, g, t0, t1, b0, b1);
    }
  }
  switch (steps) {
#if NM_STEPS
    case 1: return tokens_of_blocks<1, false, X, W>(job, g, t0, t1, b0, b1);
    case 2: return tokens_of_blocks<2, false, X, W>(job, g, t0, t1, b0, b1);
    case 4: return tokens_of_blocks<4, false, X, W>(job, g, t0, t1, b0, b1);
    case 8: return tokens_of_blocks<8, false, X, W>(job, g, t0, t1, b0, b1);
#endif
    default: return tokens_of_blocks<0, false, X, W>(job, g, t0, t1, b0, b1);
  }
}

}  // namespace NM_ISA
