"""Work-arounds for megatron-core: one file each, applied by a call, each with a slow test that fails when it can go."""
