"""What the Triton kernels share: the chunk length, a dot that the interpreter can run, and gates as powers of two.

Importing this file imports Triton; the package does so only when a Triton kernel is first used.
"""

import triton
import triton.language as tl

CHUNK = 64  # wgmma wants 64 rows
# Triton's interpreter multiplies bfloat16 matrices as if they were integers. True only while it interprets.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)
# Decays below this power of two are zero in float32; the bound keeps the running sum accurate after a token with g = -1e4.
LOWEST_LOG2 = tl.constexpr(-150.0)


@triton.jit
def matmul(a, b, PRECISION: tl.constexpr):
    """a @ b with a float32 result. PRECISION is of float32 operands alone.

    On Hopper, Triton 3.4 to 3.7.0 miscompiles some products whose first operand is the transpose of a product
    (github.com/fla-org/flash-linear-attention, #640), so no kernel here transposes anything but what it has loaded.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x in `dtype`, rounded to the nearest; the interpreter by itself cuts digits off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def split(x, dtype: tl.constexpr):
    """x, float32, as the sum of two numbers of `dtype`, which has twice its digits."""
    high = narrow(x, dtype)
    return high, narrow(x - high.to(tl.float32), dtype)


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """total + a @ b with b, float32, as two numbers of the dtype of a, so that it is not rounded to that."""
    high = narrow(b, a.dtype)
    total += matmul(a, high, PRECISION)
    if a.dtype.primitive_bitwidth < 32:
        # Made after the first product: at once, both would be held in registers.
        total += matmul(a, narrow(b - high.to(tl.float32), a.dtype), PRECISION)
    return total


@triton.jit
def log2_decay(g):
    """Log decays in float32 as powers of two, bounded below."""
    return tl.maximum(g.to(tl.float32) * LOG2_E, LOWEST_LOG2)


@triton.jit
def decay_between(later, earlier, keep):
    """exp(c_later - c_earlier) where `keep`, else 0. Masked before exp2: elsewhere the difference may be positive."""
    return tl.exp2(tl.where(keep, later - earlier, float("-inf")))
