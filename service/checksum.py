"""An artifact's bytes are those that were exported, where a checksum file lies beside it to say so."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from service.artifact import ArtifactError

SUFFIX = ".sha256"
"""`housenumber export` writes `model.onnx.sha256` beside `model.onnx`, for `sha256sum -c` to read as well."""

_OF_THE_FOLDER = "SHA256SUMS"
# A line that `sha256sum` writes; the name may be missing where there is only one file to speak of.
_LINE = re.compile(r"([0-9a-fA-F]{64})(?: [ *](?:\./)?(.+))?")


def read_checked(path: Path) -> tuple[bytes, str]:
    """The bytes of a file, and their SHA-256 in hexadecimal.

    Raises ArtifactError where it cannot be read, and where `FILE.sha256` or `SHA256SUMS` beside it does not say the
    same.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    for sums in (path.with_name(path.name + SUFFIX), path.with_name(_OF_THE_FOLDER)):
        if sums.exists() and (expected := _expected(sums, path.name)) != found:
            raise ArtifactError(
                f"{path}: its SHA-256 is {found}, {sums.name} says {expected}; copy both once more, or export again"
            )
    return content, found


def line_for(name: str, digest: str) -> str:
    """What `sha256sum` would write."""
    return f"{digest}  {name}\n"


def _expected(sums: Path, name: str) -> str:
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{sums}: cannot be read: {error}") from error
    for line in lines:
        if (entry := _LINE.fullmatch(line.strip())) and entry[2] in (None, name):
            return entry[1].lower()
    raise ArtifactError(f"{sums}: has no line for {name}; write it with `sha256sum {name}`")
