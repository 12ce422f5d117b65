"""Fast-weight operators: the gated delta rule, its short convolution and its output norm. Knows only torch.

Each is a torch.library operator with a backward of its own, so that torch.compile sees no graph break. Importing the
package registers them and does nothing else.
"""

from sleep_kernels.gated_delta import BACKENDS, gated_delta_rule
from sleep_kernels.gated_norm import gated_rms_norm
from sleep_kernels.short_conv import short_conv

__all__ = ["BACKENDS", "gated_delta_rule", "gated_rms_norm", "short_conv"]
