"""Execution of a schedule on one process: autograd, executor, segments, activation store, gradients, P2P, CUDA graphs."""
