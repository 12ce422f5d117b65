"""Launching a command as several processes."""
