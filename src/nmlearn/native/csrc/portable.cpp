// Any processor: what the compiler makes of vectors of sixteen floats.
#define NM_ISA portable
#define NM_TOKENS 4
#define NM_VECTORS 3
#define NM_SUMS 3
#define NM_STEPS 0
#define NM_TILE_BYTES (24 * 1024)
#include "isa.h"

extern const Kernels kernels_portable;
const Kernels kernels_portable = {"portable", portable::row_lanes, portable::token_lanes, portable::token_vectors, portable::token_scratch,
    portable::byte_tokens, portable::round_tokens, portable::byte_lanes, portable::score_step, portable::clear};
