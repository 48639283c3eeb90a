"""The lecture's experiments: each one module, run by `housenumber experiment NAME`. See docs/experiments.md."""
