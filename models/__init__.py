"""Spatial transformers, the readers built from them, their data and their training (torch)."""
