"""Intra-chunk part of the gated delta rule's backward in Triton; chunk_bwd_dqk (triton_gdr_dqk.py) runs it first.

With D_q = scale (do e^T) * G and D_k = -(dr e^T) * G, strictly lower, and beta multiplying columns,

    dq = D_q beta k + ...     dk = (D_q beta)^T q + (D_k beta + (D_k beta)^T) k + ...

No product may be transposed here (see triton_common.py), so that (D_q beta)^T and the upper half of the symmetric matrix come from
products of their own, e do^T and e dr^T. dc and dbeta are row and column sums of D_q * (q k^T) + D_k * (k k^T) in float32: a
contribution to dc of one token is subtracted from that of another as the same float32 number. Rounded products would leave rounding
errors in differences that are much smaller.

Algebra and symbols as in chunked.py.
"""

import triton
import triton.language as tl

from sleep_kernels.triton_common import CHUNK, decay_between, matmul

C = tl.constexpr(CHUNK)


@triton.jit
def intra_products(grad_o, dv, residuals, t, valid, row: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """do e^T, dr e^T, e do^T and e dr^T [C, C]; grad_o and dv point at the head's first element, residuals at the chunk's."""
    do_e = tl.zeros((C, C), tl.float32)
    dr_e = tl.zeros((C, C), tl.float32)
    e_do = tl.zeros((C, C), tl.float32)
    e_dr = tl.zeros((C, C), tl.float32)
    for first in range(0, DV, BV):
        at_v = first + tl.arange(0, BV)
        do = tl.load(grad_o + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        dr = tl.load(dv + t[:, None] * row + at_v[None, :], mask=valid[:, None], other=0.0)
        e = tl.load(residuals + tl.arange(0, C)[:, None] * DV + at_v[None, :])
        do_e += matmul(do, tl.trans(e), PRECISION)
        dr_e += matmul(dr, tl.trans(e), PRECISION)
        e_do += matmul(e, tl.trans(do), PRECISION)
        e_dr += matmul(e, tl.trans(dr), PRECISION)
    return do_e, dr_e, e_do, e_dr


@triton.jit
def gate_gradients(do_e, dr_e, qk_scores, kk_scores, c, beta, scale):
    """dc and dbeta [C] of the intra-chunk part.

    do_e and dr_e are results of intra_products. qk_scores = q k^T and kk_scores = k k^T may be computed from some columns of d_k
    only; dc and dbeta are then the contributions of these columns.
    """
    later, earlier = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    gate = decay_between(c[:, None], c[None, :], later >= earlier)
    contribution = (do_e * scale * qk_scores - tl.where(later > earlier, dr_e * kk_scores, 0.0)) * gate
    d_beta = tl.sum(contribution, 0)
    return tl.sum(contribution * beta[None, :], 1) - beta * d_beta, d_beta


@triton.jit
def intra_matrices(do_e, dr_e, e_do, e_dr, c, beta, scale):
    """D_q beta, (D_q beta)^T and D_k beta + (D_k beta)^T [C, C] in float32, from the results of intra_products."""
    row, column = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    below = decay_between(c[:, None], c[None, :], row >= column) * beta[None, :]
    above = decay_between(c[None, :], c[:, None], column >= row) * beta[:, None]
    symmetric = -tl.where(row > column, dr_e * below, tl.where(column > row, e_dr * above, 0.0))
    return do_e * below * scale, e_do * above * scale, symmetric
