// One instruction set's table of kernels: the source including this defines NM_ISA and its block sizes.
#pragma once
#include "adamw_step.h"
#include "byte_lanes.h"
#include "lbc_step.h"
#include "row_lanes.h"
#include "token_lanes.h"

namespace NM_ISA {

static void row_lanes(const Job& job, int64_t g, int64_t t0, int64_t t1, int64_t b0, int64_t b1) {
  switch (job.shape.dtype) {
    case BF16: return row_lanes_of<uint16_t, uint16_t>(job, g, t0, t1, b0, b1);
    case INT8: return row_lanes_of<float, int8_t>(job, g, t0, t1, b0, b1);
    case BF16_INT8: return row_lanes_of<uint16_t, int8_t>(job, g, t0, t1, b0, b1);
    default: return row_lanes_of<float, float>(job, g, t0, t1, b0, b1);
  }
}

static void token_lanes(const Job& job, int64_t g, int64_t v0, int64_t v1, int64_t r0, int64_t r1, char* scratch) {
  if (job.shape.dtype == BF16) return token_lanes_of<uint16_t>(job, g, v0, v1, r0, r1, scratch);
  token_lanes_of<float>(job, g, v0, v1, r0, r1, scratch);
}

}  // namespace NM_ISA
