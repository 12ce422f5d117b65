"""Workarounds for DeepSpeed's ZeRO 3: one file each, applied by a call.

Each has a slow test in tests/engine/test_patches.py that fails when the workaround is no longer needed.
"""
