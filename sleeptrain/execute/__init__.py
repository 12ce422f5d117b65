"""Runs a schedule on one process: segments, executor, activation store, gradients, P2P messages, CUDA graphs."""
