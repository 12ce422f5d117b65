"""Generates and tokenizes training data and writes it as MDS shards beside a manifest; knows nothing of the trainer."""
