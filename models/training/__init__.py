"""Training: a recipe and shards in, finished weights out."""
