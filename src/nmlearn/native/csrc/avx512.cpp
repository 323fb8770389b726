// AVX-512: 32 registers of 16 floats.
#define NM_ISA avx512
#define NM_TOKENS 8
#define NM_VECTORS 13
#define NM_SUMS 8
#define NM_STEPS 1
#define NM_TILE_BYTES (40 * 1024)
#include "isa.h"

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = {"avx512", avx512::row_lanes, avx512::token_lanes, avx512::token_vectors, avx512::token_scratch,
    avx512::byte_tokens, avx512::round_tokens, avx512::byte_lanes, avx512::score_step, avx512::clear};
