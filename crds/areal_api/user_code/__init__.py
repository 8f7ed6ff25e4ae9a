"""Packs, fetches and unpacks a user's code within bounds. Only ``grpo`` and the trainer's init container run it."""
