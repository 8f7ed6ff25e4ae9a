"""The places where a run executes. Each starts, watches and stops processes; none imports another."""
