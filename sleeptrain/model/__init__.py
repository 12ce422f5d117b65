"""Blocks, stack, state, the sleep interpreter and the language model."""
