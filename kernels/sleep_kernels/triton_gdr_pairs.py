"""The gated delta rule in Triton, backward: what tokens of a chunk do to one another, the first part of `remainder`.

With D_q = scale (do e^T) * G and D_k = -(dr e^T) * G, strictly lower, and beta multiplying columns,

    dq = D_q beta k + ...     dk = (D_q beta)^T q + (D_k beta + (D_k beta)^T) k + ...

so that q and k, which are exact, stand in every product, and what multiplies them is two numbers of their dtype. dc and
dbeta are sums over the rows and columns of D_q * (q k^T) + D_k * (k k^T) in float32: what one token adds to dc and another
takes off is the same number, where rounded products would leave their rounding in a difference much smaller than they are.

These matrices go through memory, 32 KB a program, which should stay in the cache: they must be read transposed too, no
product may be transposed here (see triton_common.py), and they need not be held while the products with states are formed.

Algebra and symbols as in chunked.py.
"""

import triton
import triton.language as tl

from sleep_kernels.triton_common import CHUNK, decay_between, matmul, narrow

C = tl.constexpr(CHUNK)


@triton.jit
def pair_gradients(grad_o, dv, residuals, residuals_low, t, valid, row: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """do e^T and dr e^T [C, C]. Pointers at a head's first element, those of e at the chunk's."""
    read = tl.zeros((C, C), tl.float32)
    erase = tl.zeros((C, C), tl.float32)
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        at_e = tl.arange(0, C)[:, None] * DV + at_v[None, :]
        do = tl.load(grad_o + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        dr = tl.load(dv + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        e = tl.load(residuals + at_e)
        read += matmul(do, tl.trans(e), PRECISION)
        erase += matmul(dr, tl.trans(e), PRECISION)
        if residuals.dtype.element_ty.primitive_bitwidth < 32:
            e_low = tl.load(residuals_low + at_e)
            read += matmul(do, tl.trans(e_low), PRECISION)
            erase += matmul(dr, tl.trans(e_low), PRECISION)
    return read, erase


@triton.jit
def store_pairs(read, erase, asked, alike, c, beta, scratch, scale):
    """Into scratch [4, C, C] D_q beta and D_k beta plus its transpose, each with what it loses; returns dc and dbeta.

    read and erase from pair_gradients; asked = q k^T and alike = k k^T from part of the columns will do, which gives that
    part of dc and dbeta.
    """
    DTYPE: tl.constexpr = scratch.dtype.element_ty
    later, earlier = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    gate = decay_between(c[:, None], c[None, :], later >= earlier)
    read *= gate * scale
    erase = tl.where(later > earlier, -erase * gate, 0.0)
    each = read * asked + erase * alike
    d_beta = tl.sum(each, 0)
    d_c = tl.sum(each * beta[None, :], 1) - beta * d_beta
    square, mirror = scratch + later * C + earlier, scratch + earlier * C + later
    erase *= beta[None, :]
    high = narrow(erase, DTYPE)
    tl.store(square + 2 * C * C, high, mask=later >= earlier)
    tl.store(mirror + 2 * C * C, high, mask=later > earlier)
    if DTYPE.primitive_bitwidth < 32:
        low = narrow(erase - high.to(tl.float32), DTYPE)
        tl.store(square + 3 * C * C, low, mask=later >= earlier)
        tl.store(mirror + 3 * C * C, low, mask=later > earlier)
    read *= beta[None, :]
    high = narrow(read, DTYPE)
    tl.store(square, high)
    if DTYPE.primitive_bitwidth < 32:
        tl.store(square + C * C, narrow(read - high.to(tl.float32), DTYPE))
    return d_c, d_beta
