"""Intra-chunk part of the gated delta rule's backward in Triton; chunk_bwd_dqk (triton_gdr_dqk.py) runs it first.

With D_q = scale (do e^T) * G and D_k = -(dr e^T) * G, strictly lower, and beta multiplying columns,

    dq = D_q beta k + ...     dk = (D_q beta)^T q + (D_k beta + (D_k beta)^T) k + ...

In these products q and k are exact, and the matrices are split into a high and a low part of their dtype. dc and dbeta are
row and column sums of D_q * (q k^T) + D_k * (k k^T) in float32: a contribution to dc of one token is subtracted from that of
another as the same float32 number. Rounded products would leave rounding errors in differences that are much smaller.

The matrices are stored in scratch memory, 32 KB per program, which should stay in the L2 cache. They are also read
transposed, and no product may be transposed here (see triton_common.py); and they take no registers while the products with
states are computed.

Algebra and symbols as in chunked.py.
"""

import triton
import triton.language as tl

from sleep_kernels.triton_common import CHUNK, decay_between, matmul, round_to

C = tl.constexpr(CHUNK)


@triton.jit
def intra_products(grad_o, dv, residuals, residuals_low, t, valid, row: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """do e^T and dr e^T [C, C].

    grad_o and dv point at the head's first element, residuals and residuals_low at the chunk's.
    """
    do_e = tl.zeros((C, C), tl.float32)
    dr_e = tl.zeros((C, C), tl.float32)
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        at_e = tl.arange(0, C)[:, None] * DV + at_v[None, :]
        do = tl.load(grad_o + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        dr = tl.load(dv + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        e = tl.load(residuals + at_e)
        do_e += matmul(do, tl.trans(e), PRECISION)
        dr_e += matmul(dr, tl.trans(e), PRECISION)
        if residuals.dtype.element_ty.primitive_bitwidth < 32:
            e_low = tl.load(residuals_low + at_e)
            do_e += matmul(do, tl.trans(e_low), PRECISION)
            dr_e += matmul(dr, tl.trans(e_low), PRECISION)
    return do_e, dr_e


@triton.jit
def store_intra_gradients(do_e, dr_e, qk_scores, kk_scores, c, beta, scratch, scale):
    """Store the split D_q beta and D_k beta + (D_k beta)^T into scratch [4, C, C]; return dc and dbeta.

    do_e and dr_e are the results of intra_products. qk_scores = q k^T and kk_scores = k k^T may be computed from some columns
    of d_k only; dc and dbeta are then the contributions of these columns.
    """
    DTYPE: tl.constexpr = scratch.dtype.element_ty
    later, earlier = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    gate = decay_between(c[:, None], c[None, :], later >= earlier)
    d_q = do_e * (gate * scale)
    d_k = tl.where(later > earlier, -dr_e * gate, 0.0)
    contribution = d_q * qk_scores + d_k * kk_scores
    d_beta = tl.sum(contribution, 0)
    d_c = tl.sum(contribution * beta[None, :], 1) - beta * d_beta
    square, mirror = scratch + later * C + earlier, scratch + earlier * C + later
    d_k *= beta[None, :]
    high = round_to(d_k, DTYPE)
    tl.store(square + 2 * C * C, high, mask=later >= earlier)
    tl.store(mirror + 2 * C * C, high, mask=later > earlier)
    if DTYPE.primitive_bitwidth < 32:
        low = round_to(d_k - high.to(tl.float32), DTYPE)
        tl.store(square + 3 * C * C, low, mask=later >= earlier)
        tl.store(mirror + 3 * C * C, low, mask=later > earlier)
    d_q *= beta[None, :]
    high = round_to(d_q, DTYPE)
    tl.store(square, high)
    if DTYPE.primitive_bitwidth < 32:
        tl.store(square + C * C, round_to(d_q - high.to(tl.float32), DTYPE))
    return d_c, d_beta
