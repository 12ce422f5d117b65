"""Measuring a trained model: accuracy by label, sweeps over the number of passes, what the fast weights retain."""
