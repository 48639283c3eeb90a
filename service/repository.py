"""The model repository: a folder with `NAME/VERSION/model.onnx` for every version of every model.

Versions are whole numbers without leading zeros and are compared as numbers. What else lies in the folder is no
business of the repository: a version that is being copied under another name does not exist yet.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from service.artifact import ArtifactError, ArtifactMetadata

MODEL_FILE = "model.onnx"

_VERSION = re.compile(r"[1-9][0-9]*", re.ASCII)


class NoSuchModelError(ArtifactError):
    """The repository has no such model, or no such version of it; the message says what there is."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be served. `name` and `version` are those of its folders, "" for a file outside a repository."""

    path: Path
    name: str = ""
    version: str = ""

    def check(self, metadata: ArtifactMetadata) -> None:
        """Whether the artifact that was read from `path` is the one that belongs there; raises ArtifactError."""
        if self.name and (metadata.name, metadata.version) != (self.name, self.version):
            raise ArtifactError(
                f"{self.path}: the artifact is {metadata.name} version {metadata.version}, its folders say {self.name}"
                f" version {self.version}; move it, or export it with `--name {self.name}"
                f" --model-version {self.version}`"
            )

    def has_sha256(self, sha256: str) -> bool:
        """Whether these are the bytes of the file at the moment; not where it cannot be read."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Repository:
    """What lies under `root`, looked up anew each time. Every method reads the disk and raises ArtifactError."""

    root: Path

    def candidates(self) -> list[Candidate]:
        """Every version of every model, also those without a file, by name and then from the lowest version up."""
        try:
            models = sorted(_folders(self.root))
        except OSError as error:
            raise ArtifactError(f"the model repository {self.root}: {error.strerror}") from error
        return [
            Candidate(folder / MODEL_FILE, model.name, folder.name) for model in models for folder in _versions(model)
        ]

    def find(self, name: str | None = None, version: str | None = None) -> Candidate:
        """A version of a model: by default the only model, and the highest of its versions that has a file."""
        candidates = self.candidates()
        names = sorted({candidate.name for candidate in candidates})
        if not names:
            raise NoSuchModelError(f"the model repository {self.root} has no NAME/VERSION/{MODEL_FILE}; copy one there")
        if name is None and len(names) > 1:
            raise NoSuchModelError(
                f"the model repository {self.root} has several models, {', '.join(names)}; say which with model_name"
            )
        if name is not None and name not in names:
            raise NoSuchModelError(f"the model repository has no model {name[:80]!r}; there is {', '.join(names)}")
        name = name or names[0]
        complete = [c for c in candidates if c.name == name and c.path.is_file()]
        found = [candidate for candidate in complete if version in (None, candidate.version)]
        if not found:
            there = ", ".join(candidate.version for candidate in complete) or "none"
            asked = f"version {version}" if version else "any version"
            raise NoSuchModelError(
                f"the model repository has no {MODEL_FILE} for {asked[:80]} of {name}; versions with one: {there}"
            )
        return found[-1]


def _folders(parent: Path) -> list[Path]:
    return [entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _versions(model: Path) -> list[Path]:
    try:
        folders = _folders(model)
    except OSError:  # such as `lost+found`, which only root may read
        return []
    return sorted((path for path in folders if _VERSION.fullmatch(path.name)), key=lambda path: int(path.name))
