"""`housenumber export` and `housenumber verify`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.artifact import Label, build_artifact
from export.verify import Check, verify
from models.checkpoint import CheckpointError, weights_sha256
from models.evaluation.calibration import Calibration, read_calibration
from models.evaluation.confidence import CalibrationError
from models.evaluation.options import finite
from models.files import replacing
from service.checksum import SUFFIX, line_for


def _not_empty(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value:
        raise click.BadParameter("must not be empty")
    return value


def _onnx(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    # Whatever is there is replaced: a checkpoint given by mistake would be lost.
    if value.suffix != ".onnx":
        raise click.BadParameter(f"{value} does not end in .onnx")
    return value


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("export")
@click.argument("checkpoint", type=_FILE)
@click.option(
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_onnx,
    help="The .onnx file to write.",
)
@click.option(
    "--name",
    default="house-number",
    show_default=True,
    callback=_not_empty,
    help="Name of the model in the service's answers.",
)
@click.option("--model-version", default="1", show_default=True, callback=_not_empty, help="Its version there.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    show_default=str(Label.threshold),
    callback=finite,
    help="Confidence from which a reading is accepted.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    show_default=str(Label.temperature),
    callback=finite,
    help="What the logits are divided by (calibration).",
)
@click.option(
    "--calibration",
    type=_FILE,
    help="Takes temperature and threshold from the output of `housenumber calibrate` for these weights, and stores its"
    " figures in the file.",
)
@click.option(
    "--evaluation", type=_FILE, help="Figures to store in the file: the output of `housenumber evaluate --json`."
)
def export_command(
    checkpoint: Path,
    output: Path,
    name: str,
    model_version: str,
    threshold: float | None,
    temperature: float | None,
    calibration: Path | None,
    evaluation: Path | None,
) -> None:
    """Export CHECKPOINT (.safetensors) to one self-describing ONNX file.

    The file is verified first (see `housenumber verify`) and written only if it passes, with its checksum beside it.
    """
    label = Label(
        name,
        model_version,
        Label.threshold if threshold is None else threshold,
        Label.temperature if temperature is None else temperature,
        _figures(evaluation) if evaluation else {},
    )
    if calibration:
        if threshold is not None or temperature is not None:
            raise click.UsageError("--calibration brings both --temperature and --threshold: give one or the other")
        label = label.calibrated(_calibration(calibration, checkpoint))
    _same_confidence(label)
    status = Console(stderr=True)
    with status.status("exporting") as line:
        try:
            artifact = build_artifact(checkpoint, label)
        except (CheckpointError, OSError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error
        checks = verify(artifact, checkpoint, lambda check: line.update(f"verifying: {check}"))
    if not _passed(checks):
        status.print(_table(checks))
        raise click.ClickException(f"{output} is not written: it does not pass verification")
    digest = hashlib.sha256(artifact).hexdigest()
    try:
        _write(output, artifact)
        _write(output.with_name(output.name + SUFFIX), line_for(output.name, digest).encode())
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error
    click.echo(f"{output}: {len(artifact) / 1e6:.1f} MB, sha256 {digest}, {len(checks)} checks passed")


@click.command("verify")
@click.argument("model", type=_FILE)
@click.option(
    "--weights",
    type=_FILE,
    help="The checkpoint it was exported from.  [default: MODEL with the suffix .safetensors]",
)
def verify_command(model: Path, weights: Path | None) -> None:
    """Check that MODEL (.onnx) can be served, and answers as its checkpoint does in PyTorch.

    Prints a table of the checks; the exit code is 1 when one fails.
    """
    with Console(stderr=True).status("verifying") as line:
        checks = verify(
            model.read_bytes(),
            weights or model.with_suffix(".safetensors"),
            lambda check: line.update(f"verifying: {check}"),
        )
    Console().print(_table(checks))
    if not _passed(checks):
        raise click.exceptions.Exit(1)


def _calibration(path: Path, checkpoint: Path) -> Calibration:
    """The calibration in `path`; click.BadParameter when there is none or it is that of other weights."""
    try:
        calibration = read_calibration(path)
    except CalibrationError as error:
        raise click.BadParameter(str(error), param_hint="--calibration") from error
    if (digest := weights_sha256(checkpoint)) != calibration.weights_sha256:
        raise click.BadParameter(
            f"{path} was fitted to weights {calibration.weights_sha256[:12]}…; {checkpoint} is {digest[:12]}…",
            param_hint="--calibration",
        )
    return calibration


def _same_confidence(label: Label) -> None:
    """click.UsageError when the figures were measured at another temperature or threshold than the file will have."""
    measured = label.evaluation.get("model")
    if not isinstance(measured, dict):
        return
    for name, value in (("temperature", label.temperature), ("threshold", label.threshold)):
        if measured.get(name, value) != value:
            raise click.UsageError(
                f"--evaluation was measured at {name} {measured[name]}, the file is to have {value}:"
                " export first, evaluate that file, and export again with its figures"
            )


def _figures(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; click.BadParameter when there is none."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except ValueError as error:
        raise click.BadParameter(f"{path} is not JSON: {error}", param_hint="--evaluation") from error
    if not isinstance(figures, dict):
        raise click.BadParameter(f"{path} is not a JSON object", param_hint="--evaluation")
    return figures


def _refuse(constant: str) -> None:
    """Python reads NaN and Infinity in JSON; whoever reads the artifact need not."""
    raise ValueError(f"{constant} is no JSON value")


def _passed(checks: Sequence[Check]) -> bool:
    return all(check.passed for check in checks)


def _table(checks: Sequence[Check]) -> Table:
    table = Table("check", "result", "detail")
    for check in checks:
        result = "[green]pass[/]" if check.passed else "[red]FAIL[/]"
        table.add_row(check.name, result, escape(check.detail))
    return table


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
