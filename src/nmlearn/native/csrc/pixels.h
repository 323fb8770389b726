// Where the inputs of a token are.
#pragma once
#include "job.h"

namespace NM_ISA {

constexpr int64_t MOST_TAPS = 64;

// The input pixel under the first kernel position of a token; taps add dilation steps to it.
struct Origin {
  int64_t image, h, w;
};

static inline Origin origin(const Shape& s, int64_t token) {
  const int64_t area = s.out_height * s.out_width, inside = token % area;
  return {token / area, (inside / s.out_width) * s.stride_h - s.pad_h, (inside % s.out_width) * s.stride_w - s.pad_w};
}

static inline bool one_to_one(const Shape& s) {  // token t reads pixel t: linear layers and plain 1x1 convolutions
  return s.height == s.out_height && s.width == s.out_width && taps(s) == 1 && s.pad_h == 0 && s.pad_w == 0;
}

// The origin of the token after this one.
static inline void step(const Shape& s, Origin& o) {
  o.w += s.stride_w;
  if (o.w + s.pad_w < s.out_width * s.stride_w) return;
  o.w = -s.pad_w;
  o.h += s.stride_h;
  if (o.h + s.pad_h < s.out_height * s.stride_h) return;
  o.h = -s.pad_h;
  o.image++;
}

// Channels-last: the first channel of group g under every tap of `count` tokens, [tap][stride]; zeros where it pads.
template <class X>
static inline void pixel_pointers(const Job& job, int64_t g, int64_t token, int64_t count, int64_t stride,
                                  const X** out) {
  const Shape& s = job.shape;
  const int64_t pixel = s.channels * s.groups;
  const X* x = static_cast<const X*>(job.x) + g * s.channels;
  if (one_to_one(s)) {
    for (int64_t i = 0; i < count; i++) out[i] = x + (token + i) * pixel;
    return;
  }
  int64_t h[MOST_TAPS], w[MOST_TAPS], offset[MOST_TAPS];
  for (int64_t kh = 0, tap = 0; kh < s.kernel_h; kh++)
    for (int64_t kw = 0; kw < s.kernel_w; kw++, tap++) {
      h[tap] = kh * s.dilation_h;
      w[tap] = kw * s.dilation_w;
      offset[tap] = (h[tap] * s.width + w[tap]) * pixel;
    }
  const int64_t reach_h = (s.kernel_h - 1) * s.dilation_h, reach_w = (s.kernel_w - 1) * s.dilation_w;
  Origin o = origin(s, token);
  for (int64_t i = 0; i < count; i++, step(s, o)) {
    const int64_t corner = ((o.image * s.height + o.h) * s.width + o.w) * pixel;
    if (o.h >= 0 && o.w >= 0 && o.h + reach_h < s.height && o.w + reach_w < s.width) {
      for (int64_t tap = 0; tap < taps(s); tap++) out[tap * stride + i] = x + (corner + offset[tap]);
      continue;
    }
    for (int64_t tap = 0; tap < taps(s); tap++) {
      const int64_t y = o.h + h[tap], z = o.w + w[tap];
      const bool inside = y >= 0 && y < s.height && z >= 0 && z < s.width;
      out[tap * stride + i] = inside ? x + (corner + offset[tap]) : static_cast<const X*>(job.zeros);
    }
  }
}

}  // namespace NM_ISA
