"""The model: blocks, stack, state, language model and the eager interpreter of sleep programs."""
