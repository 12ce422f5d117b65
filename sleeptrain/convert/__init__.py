"""Exports trained models to folders that other engines read, and imports their checkpoints."""
