"""Starts the SGLang server of an experiment from its configuration."""
