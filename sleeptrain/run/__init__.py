"""The life of a run: its folder, its environment, requests to stop."""
