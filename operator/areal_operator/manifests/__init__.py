"""Pure builders of the objects that an experiment owns, from its spec and the operator's settings."""
