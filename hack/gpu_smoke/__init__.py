"""``make gpu-smoke``: the first checks on a machine with GPUs, and a report to attach to an issue."""
