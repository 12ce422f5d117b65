"""The gated delta rule: public function, argument checks, and registration of its operators with torch."""

from typing import Any, NoReturn

from torch import Tensor

from sleep_kernels import chunked, reference, triton_gdr
from sleep_kernels.common import RuleArguments, compute_dtype
from sleep_kernels.register import forbid_double_backward, register_backward, register_operator

BACKENDS = ("auto", "chunked", "reference", "triton")


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    *,
    scale: float | None = None,
    resets: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Write tokens into a fast-weight matrix per head and read it with queries. For each token, with S [d_k, d_v]:

        S <- exp(g) S;    u = beta (v - k^T S);    S <- S + k u^T;    o = scale q^T S

    q, k: [batch, time, key_heads, d_k], L2-normalised by the caller. bf16, fp16, fp32 or fp64.
    v: [batch, time, value_heads, d_v] in the dtype of q, value_heads = r * key_heads; heads i*r .. i*r+r-1 use key head i.
    g, beta: [batch, time, value_heads], log decay (<= 0) and write strength, in the dtype of q or float32.
    initial_state: [batch, value_heads, d_k, d_v], float32 (float64 for float64 inputs); None means zero.
    scale: factor of the output, d_k ** -0.5 by default.
    resets: g may be -inf, which resets S to zero before the token is written. "chunked" then masks decays over a reset, which takes
        time. With False, and always in Triton, such a token adds -150 to the cumulative sum of log2 decays in its chunk, whose
        rounding changes the decays after it by up to 1e-5 in float32.
    backend: "chunked" (plain torch; backward saves only the inputs; no second derivative), "triton" (the same in fused
        GPU kernels; falls back to "chunked" without an entry in the table of verified.py), "reference" (token by token
        through autograd: slow, and memory grows with time), or "auto": "triton" on a GPU for which it has been verified,
        else "chunked". The logger "sleep_kernels" reports the choice and its reason once.

    Returns o [batch, time, value_heads, d_v] in the dtype of v, and the final state in the dtype of the initial state. Both
    are differentiable with respect to every input, so that a window's gradient reaches earlier windows. bf16 and fp16 inputs
    are computed in float32. Gradients are bit-reproducible.
    Raises ValueError, naming the tensor, for a wrong shape, dtype or backend.
    Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", arXiv 2412.06464.
    """
    _check(q, k, v, g, beta, initial_state)
    if scale is None:
        scale = q.shape[3] ** -0.5
    if backend == "triton" or (backend == "auto" and q.is_cuda):
        return _TRITON(q, k, v, g, beta, initial_state, scale, resets, backend == "auto")
    if backend in ("auto", "chunked"):
        return _CHUNKED(q, k, v, g, beta, initial_state, scale, resets)
    if backend == "reference":
        return reference.forward(q, k, v, g, beta, initial_state, scale)
    raise ValueError(f"backend {backend!r} is not offered; choose one of {', '.join(BACKENDS)}")


def _check(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor | None) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            _shape_error(name, tensor, "must have four dimensions, [batch, time, heads, d]")
    batch, time, key_heads, d_k = q.shape
    value_heads = v.shape[2]
    if 0 in q.shape or 0 in v.shape:
        _shape_error(*(("q", q) if 0 in q.shape else ("v", v)), "must not have an empty dimension")
    if k.shape != q.shape:
        _shape_error("k", k, f"must have the shape of q, {list(q.shape)}")
    if v.shape[:2] != q.shape[:2] or value_heads % key_heads:
        _shape_error(
            "v", v, f"must be [{batch}, {time}, a multiple of {key_heads} key heads, d_v], as q is {list(q.shape)}"
        )
    for name, tensor in (("g", g), ("beta", beta)):
        if tensor.shape != (batch, time, value_heads):
            _shape_error(name, tensor, f"must be [batch, time, value_heads] = [{batch}, {time}, {value_heads}]")
    if not q.is_floating_point():
        raise ValueError(f"q has dtype {q.dtype}; it must be a floating-point tensor")
    wide = compute_dtype(q)
    expected = (("k", k, (q.dtype,)), ("v", v, (q.dtype,)), ("g", g, (q.dtype, wide)), ("beta", beta, (q.dtype, wide)))
    for name, tensor, dtypes in expected:
        if tensor.dtype not in dtypes:
            raise ValueError(f"{name} has dtype {tensor.dtype}; with q in {q.dtype} it must be {dtypes[-1]}")
    if initial_state is not None:
        if initial_state.shape != (batch, value_heads, d_k, v.shape[3]):
            _shape_error("initial_state", initial_state, f"must be {[batch, value_heads, d_k, v.shape[3]]}")
        if initial_state.dtype != wide:
            raise ValueError(f"initial_state has dtype {initial_state.dtype}; with q in {q.dtype} it must be {wide}")


def _shape_error(name: str, tensor: Tensor, rule: str) -> NoReturn:
    raise ValueError(f"{name} has shape {list(tensor.shape)}; it {rule}")


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Any, *options: Any) -> Any:
    final = q.new_empty((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype=compute_dtype(q))
    return v.new_empty(v.shape), final


def _backward_fake(
    grad_o: Any, grad_state: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Any, *options: Any
) -> Any:
    d_state = q.new_empty((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype=compute_dtype(q))
    return (*(t.new_empty(t.shape) for t in (q, k, v, g, beta)), d_state)


def _register(name: str, forward: Any, backward: Any, options: str) -> Any:
    """Define the operators `name` and `name`_backward and return the first.

    forward, backward: take `RuleArguments`, backward after the gradients of the outputs, and then further options.
    options: the arguments of the operators after the tensors.
    """
    inputs = f"Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? initial_state, {options}"
    count = len(RuleArguments._fields)

    def call(*arguments: Any) -> Any:
        return forward(RuleArguments(*arguments[:count]), *arguments[count:])

    def call_backward(grad_o: Any, grad_state: Any, *arguments: Any) -> Any:
        return backward(grad_o, grad_state, RuleArguments(*arguments[:count]), *arguments[count:])

    run = register_operator(name, f"({inputs}) -> (Tensor o, Tensor final_state)", call, _forward_fake)
    run_backward = register_operator(
        f"{name}_backward",
        f"(Tensor? grad_o, Tensor? grad_state, {inputs}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        call_backward,
        _backward_fake,
    )

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options = inputs[6:]
        ctx.save_for_backward(*inputs[:6])
        ctx.set_materialize_grads(False)

    def derivative(ctx: Any, grad_o: Tensor | None, grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
        *grads, d_state = run_backward(grad_o, grad_state, *ctx.saved_tensors, *ctx.options)
        return *grads, d_state if ctx.needs_input_grad[5] else None, *(None for _ in ctx.options)

    register_backward(name, setup, derivative)
    forbid_double_backward(f"{name}_backward")
    return run


_CHUNKED = _register("gated_delta_rule_chunked", chunked.forward, chunked.backward, "float scale, bool resets")
_TRITON = _register(
    "gated_delta_rule_triton",
    triton_gdr.forward,
    triton_gdr.backward,
    "float scale, bool resets, bool verified_only",
)
