"""Grids of runs, what they show together, and reports with plots of any runs."""
