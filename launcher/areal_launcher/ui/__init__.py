"""The page that shows runs: ``grpo ui``."""
