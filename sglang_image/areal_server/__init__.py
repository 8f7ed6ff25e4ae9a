"""The SGLang server of an experiment: configuration in, SGLang's own process out."""
