"""The `housenumber` command: a table of commands, each imported from its room only when it is called."""

from __future__ import annotations

import importlib
from typing import Any, Never

import click

from housenumber import __version__

EXIT_MISTAKE = 1
EXIT_MISSING_EXTRA = 4

_COMMANDS = {
    "serve": ("service.commands:serve", "Serve readings over HTTP."),
    "predict": ("service.commands:predict", "Read the house numbers in image files."),
    "score": ("service.scoring.command:score", "Read many images into a Parquet dataset."),
    "train": ("models.training.commands:train", "Train a reader from a recipe."),
    "evaluate": ("models.evaluation.commands:evaluate", "Measure a checkpoint or an artifact on data."),
    "compare": ("models.evaluation.compare_command:compare", "Check a retrained reader against the shipped one."),
    "calibrate": (
        "models.evaluation.calibrate_command:calibrate_command",
        "Fit temperature and threshold on held-out data.",
    ),
    "export": ("export.commands:export_command", "Turn a checkpoint into a verified artifact."),
    "verify": ("export.commands:verify_command", "Check an artifact as the export does."),
    "data": ("models.data.commands:data", "Prepare, generate and look at data."),
    "experiment": ("models.experiments.commands:experiment", "Run one of the lecture's experiments."),
}

# Modules that the extras `train`, `score` and `ray` install.
_OF_EXTRAS = {
    "torch",
    "onnx",
    "onnxscript",
    "safetensors",
    "jinja2",
    "pyarrow",
    "fsspec",
    "httpx",
    "ray",
    "pandas",
    "h5py",
    "cv2",
    "tensorboard",
    "matplotlib",
}
# Without them there is no Ray Data.
_OF_RAY = {"ray", "pandas"}


class Rooms(click.Group):
    """A group that knows its commands by name and loads them late; a user's mistake is one line on stderr."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        ctx.meta[__name__] = cmd_name
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help) for name, (_, short_help) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _OF_EXTRAS:
                raise
            extra = "ray" if package in _OF_RAY else "score" if ctx.meta[__name__] == "score" else "train"
            _fail(
                f"this command needs {package}, which is not installed: in a checkout, pip install -e '.[{extra}]'",
                EXIT_MISSING_EXTRA,
            )
        except OSError as error:
            if error.filename is None:
                raise
            _fail(f"{error.filename}: {error.strerror}", EXIT_MISTAKE)
        except Exception as error:
            # Only now: the group itself imports no room.
            from service.artifact import ArtifactError
            from service.engine import ProviderError
            from service.errors import ServiceError
            from service.exit_codes import code_of_failure

            if isinstance(error, ArtifactError | ProviderError):
                _fail(str(error), code_of_failure(error))
            if isinstance(error, ServiceError):
                _fail(error.detail, EXIT_MISTAKE)
            raise


@click.group(
    cls=Rooms,
    epilog="Exit codes: 0 done; 1 done in part, or a file is wrong; 2 wrong usage; 3 the server cannot listen; 4 an"
    " extra is not installed; 5 the model cannot be loaded; 6 it cannot be run here. `housenumber COMMAND --help`"
    " says more.",
)
@click.version_option(__version__, prog_name="housenumber")
def main() -> None:
    """Read house numbers from photographs with a spatial transformer network."""


def _fail(message: str, code: int) -> Never:
    click.echo(f"Error: {message}", err=True)
    raise click.exceptions.Exit(code)
