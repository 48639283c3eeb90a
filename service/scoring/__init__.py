"""Batch scoring: the readings of many images as a Parquet dataset, by a job that may be killed at any moment.

One way through: `inputs` (what is to be read, in a fixed order) -> `sources` (records) -> `core` (records -> rows, with
the service's own reader) -> `parts` (rows -> files that are whole or not there). `job` knows what is done already,
`local` is who calls the core, `run` joins them, `command` is the command line.
"""
