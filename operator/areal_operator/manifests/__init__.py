"""Builders of the objects that an experiment owns. Pure: spec and settings in, manifests out."""
