"""The commands of the serving install: `housenumber serve` and `housenumber predict`."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from service import logs
from service.drawing import draw
from service.engine import OnnxEngine, Provider
from service.errors import BadRequest, ServiceError
from service.exit_codes import (
    EXIT_LISTEN,
    EXIT_MODEL,
    EXIT_PROVIDER,
    EXIT_STALLED,
    EXIT_UNANSWERED,
    EXIT_USAGE,
    EXIT_WORKERS,
)
from service.imaging import Photo, View
from service.keys import KeysError
from service.pictures import Item, Picture, answers_of, parse_region, prepare, views_of
from service.reader import Reader, Reading
from service.schemas import ModelInfo, Prediction, Predictions, Rectangle
from service.settings import ENV_PREFIX, Settings
from service.source import Source
from service.validation import first_mistake

if TYPE_CHECKING:
    from service.server import Server
    from service.supervisor import Supervisor

logger = logging.getLogger(__name__)

EXIT_SOME_FAILED = 1

# A secret on a command line can be read by everybody on the machine.
_NO_FLAG = {"api_keys", "admin_keys"}


def _settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """One flag per setting, checked by `Settings` itself, so that a flag and its variable cannot differ."""
    for name, field in reversed(Settings.model_fields.items()):
        if name in _NO_FLAG:
            continue
        default = "" if field.default is None else f" [default: {field.default}]"
        if name == "model":
            default = " [default: the one that comes with the program]"
        flag, help_text = f"--{name.replace('_', '-')}", f"{field.description}{default}"
        option = click.option(flag, name, metavar=_metavar(field.annotation), help=help_text)
        command = option(command)
    return command


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return f"[{'|'.join(get_args(annotation))}]"
    kind = next((kind for kind in get_args(annotation) if kind is not NoneType), annotation)  # of `kind | None`
    return {str: "TEXT", bool: "[true|false]", int: "INTEGER", float: "NUMBER", Path: "PATH"}[kind]


def read_settings(**flags: Any) -> Settings:
    """The settings from the flags that were given and, for the rest, the environment."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        name = str(mistake["loc"][0]) if mistake["loc"] else ""
        where = f"--{name.replace('_', '-')} or {ENV_PREFIX}{name.upper()}: " if name else ""
        raise click.UsageError(where + first_mistake([{**mistake, "loc": ()}])) from error


@click.command(
    short_help="Serve readings over HTTP.",
    epilog=f"Every flag is also a variable, {ENV_PREFIX}PORT for --port; a flag wins. API keys are only read from"
    f" {ENV_PREFIX}API_KEYS, {ENV_PREFIX}ADMIN_KEYS and from files. Exit codes: 0 stopped by a"
    f" signal, everything answered; {EXIT_USAGE} wrong usage; {EXIT_LISTEN} cannot listen; {EXIT_MODEL} the model"
    f" cannot be loaded; {EXIT_PROVIDER} the provider cannot run it; {EXIT_UNANSWERED} stopped with requests"
    f" unanswered; {EXIT_WORKERS} no worker can be started; {EXIT_STALLED} the engine gives no answers any more, or"
    " hangs while it is loaded.",
)
@_settings_options
@click.pass_context
def serve(ctx: click.Context, /, **flags: Any) -> None:
    """Serve readings over HTTP: POST /predict, and a page to try it in the browser.

    The port opens at once; /readyz answers 503 until the model is loaded and warmed.
    """
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what it asks for, to read keys and model, is about to be done
    settings = read_settings(**flags)
    logs.configure(settings.log_level, settings.log_format)
    logger.info("batching: %s", settings.batching)
    # Imported here: `predict` needs no web framework.
    from service.listening import listen, url_of

    process = _process(settings)
    try:
        listeners = listen(settings.host, settings.port)
    except OSError as error:
        logger.critical("cannot listen on %s, port %d: %s", settings.host, settings.port, error.strerror)
        ctx.exit(EXIT_LISTEN)
    for listener in listeners:
        logger.info("running on %s (Press CTRL+C to quit)", url_of(listener))
    process.run(listeners)
    ctx.exit(process.exit_code)


def _process(settings: Settings) -> Server | Supervisor:
    """What serves: one process alone, or one that watches over others."""
    if settings.workers > 1:
        from service.supervisor import Supervisor

        return Supervisor(settings)
    from service.server import Server

    try:
        return Server(settings)
    except KeysError as error:
        raise click.UsageError(f"the API keys: {error}") from error


@click.command(
    short_help="Read the house numbers in image files.",
    epilog=f"Exit codes: 0 every file was read; {EXIT_SOME_FAILED} some were not; 2 wrong usage; {EXIT_MODEL} the"
    f" model cannot be loaded; {EXIT_PROVIDER} the provider cannot run it.",
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", help="Artifact to read with, an .onnx file. [default: the one that comes along]")
@click.option("--provider", type=click.Choice(get_args(Provider)), help="What runs the model. [default: auto]")
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="X,Y,W,H",
    help="Read this region (pixels of the upright image) instead of the whole; may be given several times.",
)
@click.option(
    "--min-confidence", type=click.FloatRange(0, 1), help="Accept from this confidence on. [default: the model's]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, the objects of POST /predict.")
@click.option(
    "--draw",
    "out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Paint the readings onto the image: OUT is a file for one FILE, a directory for several.",
)
@click.pass_context
def predict(
    ctx: click.Context,
    files: tuple[Path, ...],
    model: str | None,
    provider: str | None,
    regions: tuple[str, ...],
    min_confidence: float | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Read the house numbers in image files and print them as a table."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    settings = read_settings(model=model, provider=provider)
    try:
        rectangles = tuple(parse_region(text) for text in regions)
    except BadRequest as error:
        raise click.UsageError(error.detail) from error
    targets = _drawing_targets(files, out)
    candidate = Source(settings).wanted()
    engine = OnnxEngine(
        candidate.path,
        settings.provider,
        spinning=settings.spinning,
        gpu_memory_mib=settings.gpu_memory_mib,
    )
    candidate.check(engine.metadata)
    reader = Reader(engine, settings.max_batch_size, second_look=settings.second_look, search=settings.search)

    predictions: list[Prediction] = []
    console = Console(stderr=True)
    silent = len(files) == 1 or not console.is_terminal
    for index, file in enumerate(track(files, "reading", console=console, disable=silent, transient=True)):
        picture = _picture(index, file, rectangles)
        items = prepare(picture, reader.metadata.input_size, settings.max_pixels)
        answers = answers_of(items, reader.read_each(views_of(items), min_confidence=min_confidence))
        predictions += [item.prediction(answer, boxes=True) for item, answer in zip(items, answers, strict=True)]
        if file in targets:
            _draw(picture, items, answers, targets[file], settings.max_pixels)

    if as_json:
        click.echo(Predictions(model=ModelInfo.of(reader), predictions=predictions).model_dump_json(indent=2))
    else:
        Console().print(_table(predictions))
    if any(prediction.error for prediction in predictions):
        ctx.exit(EXIT_SOME_FAILED)


def _picture(index: int, file: Path, rectangles: tuple[Rectangle, ...]) -> Picture:
    content: bytes | ServiceError
    try:
        content = file.read_bytes()
    except OSError as error:
        content = BadRequest(f"the file cannot be read: {error.strerror}")
    return Picture(content, index, str(file), rectangles)


def _drawing_targets(files: tuple[Path, ...], out: Path | None) -> dict[Path, Path]:
    """Where the drawing of each file goes; a click.UsageError for what could not be written."""
    if out is None:
        return {}
    one = len(files) == 1 and not out.is_dir()
    if one and Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise click.UsageError(f"--draw: {out} has no file name extension of a format to write, such as .png")
    targets = {files[0]: out} if one else {file: out / f"{file.stem}.png" for file in files}
    if len(set(targets.values())) < len(targets):
        raise click.UsageError("--draw: two of the files have the same name; their drawings would be one file")
    if read := {file.resolve() for file in files} & {target.resolve() for target in targets.values()}:
        raise click.UsageError(f"--draw: {min(read)} is one of the images to be read; draw into another directory")
    (out.parent if one else out).mkdir(parents=True, exist_ok=True)
    return targets


def _draw(
    picture: Picture, items: list[Item], answers: list[Reading | ServiceError], target: Path, max_pixels: int
) -> None:
    readings, regions = [], []
    for item, answer in zip(items, answers, strict=True):
        if isinstance(answer, Reading) and isinstance(item.view, View):
            readings.append(answer)
            regions.append(None if item.region is None else item.view.region)
    if readings and isinstance(picture.content, bytes):
        draw(Photo.open(picture.content, max_pixels=max_pixels).rgb(), readings, regions).save(target)


def _table(predictions: list[Prediction]) -> Table:
    table = Table()
    table.add_column("file", overflow="fold")
    with_regions = any(prediction.region for prediction in predictions)
    if with_regions:
        table.add_column("region")
    table.add_column("number", justify="right", style="bold")
    table.add_column("confidence", justify="right")
    table.add_column("accepted")
    with_errors = any(prediction.error for prediction in predictions)
    if with_errors:
        table.add_column("error", style="red", overflow="fold")
    for prediction in predictions:
        cells = [prediction.id]
        if with_regions:
            cells.append(",".join(f"{side:g}" for side in prediction.region or ()))
        if prediction.error:
            cells += ["", "", "", prediction.error.detail]
        else:
            cells += [prediction.number or "-", f"{prediction.confidence:.1%}", "yes" if prediction.accepted else "no"]
        # As Text: in a plain string, brackets (of a file's name, of a region) would be taken for markup.
        table.add_row(*map(Text, cells))
    return table
