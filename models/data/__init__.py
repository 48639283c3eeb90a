"""Data: samples, shards, collections, SVHN and the synthetic generator."""
