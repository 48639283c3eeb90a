"""`python -m housenumber` is the `housenumber` command."""

from housenumber.cli import main

main(prog_name="housenumber")
