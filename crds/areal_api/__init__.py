"""The contract that launcher, trainer, servers and operator share; pydantic only."""
