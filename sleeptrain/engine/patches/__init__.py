"""Workarounds for DeepSpeed: one file each, applied by a call.

Each has a slow test in tests/engine/test_patches.py that fails when the workaround is no longer needed.
"""
