"""The checks of `sleeptrain doctor`: a file per subject, and a table of all in the order in which they are printed."""

from sleeptrain.cli.checks.check import Check, CheckResult, run_check
from sleeptrain.cli.checks.kernels import check_kernels
from sleeptrain.cli.checks.leftovers import check_leftovers
from sleeptrain.cli.checks.machine import check_gloo, check_gpus, check_python, check_space
from sleeptrain.cli.checks.packages import check_streaming, check_versions

__all__ = ["CHECKS", "Check", "CheckResult", "run_check"]

CHECKS = (
    Check("python", check_python, "use Python 3.11 or newer"),
    Check("versions", check_versions, "install sleeptrain with pip, which records its dependencies"),
    Check("gpus", check_gpus, "compare torch's CUDA version with the driver's (nvidia-smi)", needed=False),
    Check("gloo", check_gloo, "make the host name resolve (`getent hosts $(hostname)`), or set GLOO_SOCKET_IFNAME=lo"),
    Check("kernels", check_kernels, "install sleeptrain again; sleep_kernels is part of it"),
    Check("streaming", check_streaming, "install mosaicml-streaming at the pinned version"),
    Check("space", check_space, "list the mounted file systems with df", needed=False),
    Check("leftovers", check_leftovers, "list /dev/shm with ls", needed=False),
)
