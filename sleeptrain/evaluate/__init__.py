"""Evaluation of trained models: accuracy and loss by label at one or more numbers of passes, and retention."""
