"""The GRPO trainer: asynchronous rollout on SGLang servers, policy update, weight publishing, recovery."""
