"""Generates and tokenizes training data and writes it as MDS shards with a manifest; does not depend on the trainer."""
