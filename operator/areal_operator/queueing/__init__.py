"""Experiments in a queue of Kueue: one Workload per experiment, which Kueue admits as a whole.

``gate`` decides whether a run may have pods. Everything except ``client`` is pure.
"""
