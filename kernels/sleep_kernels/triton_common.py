"""Helpers of the Triton kernels: chunk length, matrix products, rounding, and decays in log2.

Importing this file imports Triton; the package does so only when a Triton kernel first runs.
"""

import triton
import triton.language as tl

CHUNK = 64  # wgmma needs 64 rows
# True in Triton's interpreter, which multiplies bfloat16 matrices as if they were integers.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)
# Decays below this power of two are zero in float32. The bound keeps the cumulative sum accurate after a token with g = -1e4.
LOWEST_LOG2 = tl.constexpr(-150.0)


@triton.jit
def matmul(a, b, PRECISION: tl.constexpr):
    """a @ b with a float32 result. PRECISION applies to float32 operands only.

    On Hopper, Triton 3.4 to 3.7.0 miscompiles some products whose first operand is the transpose of a product (found in
    flash-linear-attention), so kernels here only transpose loaded tiles.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """x in `dtype`, rounded to nearest even; Triton's interpreter on its own truncates to bfloat16."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def log2_decay(g):
    """Log decays converted to log2 in float32, with a lower bound."""
    return tl.maximum(g.to(tl.float32) * LOG2_E, LOWEST_LOG2)


@triton.jit
def decay_between(later, earlier, keep):
    """exp(c_later - c_earlier) where `keep`, else 0. Masked before exp2, because elsewhere the difference may be positive."""
    return tl.exp2(tl.where(keep, later - earlier, float("-inf")))
