"""Copies of a run in object storage. Imports neither torch nor the engine: a check of the bucket starts quickly."""
