"""The training loop, its step, metrics and clean stop."""
