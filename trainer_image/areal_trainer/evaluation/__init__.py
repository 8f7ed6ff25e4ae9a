"""Evaluation on held-out problems: the sets, their statistics, and the files with their samples."""
