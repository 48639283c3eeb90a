"""Evaluation: how much a reader gets right, through the service's own code."""
