"""Workarounds for megatron-core and for DeepSpeed outside the engine: one file each, applied by a call.

Each has a slow test in tests/parallel/test_patches.py that fails when the workaround is no longer needed.
"""
