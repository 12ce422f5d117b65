"""Workarounds for dependencies of this package: one file each, applied by a function call, never on import."""
