// AVX2 and FMA: 16 registers of 8 floats.
#define NM_ISA avx2
#define NM_TOKENS 4
#define NM_VECTORS 3
#define NM_SUMS 6
#define NM_STEPS 0
#define NM_TILE_BYTES (24 * 1024)
#include "isa.h"

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = {"avx2", avx2::row_lanes, avx2::token_lanes, avx2::token_vectors, avx2::token_scratch,
    avx2::byte_tokens, avx2::round_tokens, avx2::byte_lanes, avx2::score_step, avx2::clear};
