"""Fused operators of a Gated DeltaNet layer and of the loss: gated delta rule, its inputs, output norm, cross-entropy.

Each but `dynamic_conv` is a torch.library operator with its own backward, so that torch.compile has no graph break. Importing the package only
registers the operators; Triton is imported when a kernel first runs.
"""

from sleep_kernels.delta_inputs import delta_inputs
from sleep_kernels.dynamic_conv import dynamic_conv
from sleep_kernels.gated_delta import BACKENDS, gated_delta_rule
from sleep_kernels.gated_norm import gated_rms_norm
from sleep_kernels.linear_cross_entropy import linear_cross_entropy
from sleep_kernels.short_conv import short_conv
from sleep_kernels.single_token import convolve_token, delta_rule_token, gated_norm_token
from sleep_kernels.torch_delta_inputs import inverse_norm, log_decay

__all__ = [
    "BACKENDS",
    "convolve_token",
    "delta_inputs",
    "delta_rule_token",
    "dynamic_conv",
    "gated_delta_rule",
    "gated_norm_token",
    "gated_rms_norm",
    "inverse_norm",
    "linear_cross_entropy",
    "log_decay",
    "short_conv",
]
