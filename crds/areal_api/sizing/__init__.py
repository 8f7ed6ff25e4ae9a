"""Does a run fit? Memory per GPU, disk and placement, computed from an experiment and its models' config.json alone."""
