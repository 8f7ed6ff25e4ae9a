"""A package, so that Python prefers it to the `examples` that AWorld installs."""
