"""Where a process takes its model from: one file, or the versions of one model in a repository."""

from __future__ import annotations

from dataclasses import dataclass

from service.artifact import ArtifactError
from service.repository import MODEL_FILE, Candidate, NoSuchModelError, Repository
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Choice:
    """A version of a model that is to be served, None for the newest. `newest` is whether it is served for being that,
    so that a later reload looks for a newer one."""

    name: str
    version: str | None
    newest: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A version of a model: whether it is the one that serves, and otherwise why not."""

    name: str
    version: str
    ready: bool
    reason: str


class Source:
    """What may be served, what is wanted, and what was refused. Its methods read the disk and raise ArtifactError.

    `pinned` is the version that is wanted, None for the newest; `refused` says why a candidate was not taken.
    """

    def __init__(self, settings: Settings) -> None:
        self.pinned = None if settings.model_version is None else str(settings.model_version)
        self.refused: dict[Candidate, str] = {}
        self._repository = Repository(settings.model_repository) if settings.model_repository else None
        self._name = settings.model_name
        self._file = settings.model

    def wanted(self) -> Candidate:
        """The file; or of the repository's model the pinned version, or else the newest."""
        if self._repository is None:
            return Candidate(self._file)
        candidate = self._repository.find(self._name, self.pinned)
        # The process stays with the model it has begun with, also where others are put beside it.
        self._name = candidate.name
        return candidate

    def chosen(self, name: str, version: str | None) -> Candidate:
        """A version of the model, None for the newest."""
        if self._repository is None:
            raise ArtifactError("one file is served; to load others, start with model_repository instead of model")
        if name != self._name:
            raise NoSuchModelError(
                f"this process serves {self._name}, not {name[:80]}; another one can, with model_name"
            )
        return self._repository.find(name, version)

    def listed(self, serving: Candidate | None) -> list[Listed]:
        """Every version in the repository; none where there is no repository."""
        candidates = self._repository.candidates() if self._repository else []
        return [Listed(c.name, c.version, c == serving, self._reason(c, serving)) for c in candidates]

    def _reason(self, candidate: Candidate, serving: Candidate | None) -> str:
        if candidate in self.refused:
            return self.refused[candidate]
        if candidate == serving:
            return ""
        if not candidate.path.is_file():
            return f"there is no {MODEL_FILE}"
        return "not loaded" if candidate.name == self._name else f"this process serves {self._name}"
