"""`python -m housenumber` is the `housenumber` command."""

from housenumber.cli import main

# Guarded: worker processes that are spawned import this module again.
if __name__ == "__main__":
    main(prog_name="housenumber")
