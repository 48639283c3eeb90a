"""Finished weights: one safetensors file that carries its spec."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from models.files import replacing
from models.readers import ReaderSpec, build_reader

SPEC_KEY = "housenumber"


class CheckpointError(Exception):
    """A file that is not weights of ours; the message says why, in one line."""


def save_reader(path: Path, reader: nn.Module, spec: ReaderSpec) -> None:
    """Write the weights of `reader`, with `spec` in the header, whole or not at all."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in reader.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_bytes(save(tensors, {SPEC_KEY: json.dumps(asdict(spec), sort_keys=True)}))


def load_reader(path: Path) -> tuple[nn.Module, ReaderSpec]:
    """The reader in evaluation mode, and its spec.

    Raises:
        CheckpointError: not a safetensors file, not one of ours, or weights that do not fit the reader.
        OSError: the file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if SPEC_KEY not in metadata:
                raise CheckpointError(f"{path} holds no reader's spec; it was not written by `housenumber train`")
            spec = ReaderSpec(**json.loads(metadata[SPEC_KEY]))
            reader = build_reader(spec)
            reader.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from error
    return reader.eval(), spec


def weights_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
