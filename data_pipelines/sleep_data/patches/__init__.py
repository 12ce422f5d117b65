"""Work-arounds for dependencies of this package: one small file each, applied by a call and never on import."""
