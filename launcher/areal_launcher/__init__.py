"""`grpo`: runs an experiment on this machine and shows it to a person."""
