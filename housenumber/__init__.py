"""The `housenumber` command; what it does lives in the rooms `service`, `export` and `models`."""

from importlib.metadata import version

__version__ = version("housenumber")
