"""The Open Inference Protocol (KServe v2) over HTTP, with those of Triton's extensions that its clients need."""

PREFIX = "/v2"
"""Where its routes are. Whatever fails under it answers as the protocol says, not with a problem."""
