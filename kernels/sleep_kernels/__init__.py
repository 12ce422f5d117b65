"""Fast-weight operators: the gated delta rule, what stands before and after it, and the loss. Knows torch and Triton.

Each is a torch.library operator with a backward of its own, so that torch.compile sees no graph break. Importing the
package registers them and does nothing else; Triton is imported when a kernel first runs.
"""

from sleep_kernels.chunked_inputs import log_decay
from sleep_kernels.delta_inputs import delta_inputs
from sleep_kernels.gated_delta import BACKENDS, gated_delta_rule
from sleep_kernels.gated_norm import gated_rms_norm
from sleep_kernels.linear_cross_entropy import linear_cross_entropy
from sleep_kernels.short_conv import short_conv

__all__ = [
    "BACKENDS",
    "delta_inputs",
    "gated_delta_rule",
    "gated_rms_norm",
    "linear_cross_entropy",
    "log_decay",
    "short_conv",
]
