"""Hostile requests against a real server process: none may get a 500, be left hanging, or make it grow.

    make bench        (or: python -m bench.hostile --count 100000 --json hostile.json)
    python -m bench.hostile --seed 7 --only 4711     # one of them again, as a failure says

Every request has a connection of its own. Mutated images of all formats, malformed multipart, JSON and binary tensors,
wrong lengths, bodies cut off, odd headers and no HTTP at all: `bench/hostile_requests.py`. In between come good ones,
which must be answered as ever.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.progress import track

from bench.hostile_requests import Hostile, good, hostile
from bench.processes import Server, environment, serving
from bench.report import Row, show
from service.engine import OnnxEngine
from service.settings import DEFAULT_MODEL

ANSWER_S = 15.0
"""In which every request must be answered, or its connection closed."""
BODY_TIMEOUT_S = 0.5
"""The server's `body_timeout_s`, so that those who wait within a body do not make the run long."""
GOOD_EVERY = 100
GROWTH = 0.05
"""By which share the server's memory may be larger at the end than after the first tenth: requests differ in size."""
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Has glibc give back what the server frees. It would keep tens of MiB for the next images, which is no growth."""
_TOO_LATE = 504
"""Right for those who say how long they wait: as little as a millisecond."""
_NOT_SERVED = 501
"""Right for odd transfer codings."""
_LEAVES_AFTER_S = 0.005
"""Time for the server to begin with what it was sent."""
_RESET = struct.pack("ii", 1, 0)


class Attack:
    """Sends requests, and remembers in `failures` what should not have happened; `outcomes` counts the rest."""

    def __init__(self, port: int, model: str, seed: int, concurrency: int = 64) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[int, str] = {}
        self._port = port
        self._model = model
        self._seed = seed
        self._concurrency = concurrency

    def run(self, indexes: Iterable[int]) -> None:
        uvloop.run(self._run(iter(indexes)))

    async def _run(self, indexes: Iterator[int]) -> None:
        async def one_after_the_other() -> None:
            for index in indexes:
                await self._attempt(index)

        await asyncio.gather(*(one_after_the_other() for _ in range(self._concurrency)))

    async def _attempt(self, index: int) -> None:
        is_good = index % GOOD_EVERY == 0
        request = Hostile("good", good()) if is_good else hostile(self._seed, index, self._model)
        try:
            async with asyncio.timeout(ANSWER_S):
                status, body = await self._exchange(request)
        except TimeoutError:
            self.failures[index] = f"{request.kind}: neither answered nor closed within {ANSWER_S:g} s"
            return
        sent = request.sent.lower()
        is_right = status == _TOO_LATE and b"timeout" in sent
        is_right |= status == _NOT_SERVED and b"transfer-encoding" in sent
        if (status >= 500 and not is_right) or b'"code":"internal"' in body or (is_good and status != 200):
            self.failures[index] = f"{request.kind}: {status or 'closed'} {body[:200]!r}"
        self.outcomes[f"{request.kind}: {status or 'closed'}"] += 1

    async def _exchange(self, request: Hostile) -> tuple[int, bytes]:
        """Status and body of the first answer; status 0 where the connection was closed without one."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request.sent)
            if request.then == "leaves":
                await asyncio.sleep(_LEAVES_AFTER_S)
                return 0, b""
            if request.then == "stops":
                writer.write_eof()
            return await _answer(reader, is_head=request.is_head)
        except (ConnectionError, asyncio.IncompleteReadError):
            return 0, b""
        finally:
            # With a reset: a hundred thousand connections that linger would use up the ports.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader, *, is_head: bool) -> tuple[int, bytes]:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        if status >= 200 or status == 101:
            break
    if is_head or status in (101, 204, 304):
        return status, b""
    if b"\r\ncontent-length:" in head:
        return status, await reader.readexactly(int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r")[0]))
    return status, await reader.read()


@click.command()
@click.option("--count", type=click.IntRange(min=1), default=100_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--only", type=int, help="Send just the request with this index, and show what comes back.")
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=DEFAULT_MODEL)
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path))
def main(count: int, seed: int, only: int | None, model: Path, json_out: Path | None) -> None:
    """Attack a server of its own; exit code 1 where it failed."""
    begun = environment()
    command = ["housenumber", "serve", "--provider", "cpu", "--model", str(model), "--log-format", "json"]
    command += ["--body-timeout-s", str(BODY_TIMEOUT_S)]
    with tempfile.TemporaryDirectory() as folder, serving(command, Path(folder) / "log", GIVING_BACK) as server:
        server.wait_until_ready()
        attack = Attack(server.port, _name(model), seed)
        if only is not None:
            click.echo(hostile(seed, only, _name(model)))
            attack.run([only])
            growth = 0.0
        else:
            growth = _measured(attack, server, count)
        faults = [line for line in server.log.read_text().splitlines() if '"exception"' in line or '"ERROR"' in line]
        alive = server.popen.poll() is None and server.get("/readyz")[0] == 200

    for outcome, times in sorted(attack.outcomes.items()):
        click.echo(f"{times:8}  {outcome}")
    for index, failure in sorted(attack.failures.items()):
        click.echo(f"FAILED, again with --seed {seed} --only {index}: {failure}")
    for line in faults[:10]:
        click.echo(f"FAULT: {line[:2000]}")
    rows = [
        Row("failures", len(attack.failures), most=0),
        Row("faults in the log", len(faults), most=0),
        Row("growth of memory", 100 * growth, "%", most=100 * GROWTH),
        Row("alive", int(alive), least=1),
    ]
    options = {"model": model.name, "count": count, "seed": seed}
    show(rows, json_out, environment=begun, options=options, outcomes=attack.outcomes, failures=attack.failures)
    if any(row.verdict == "MISSED" for row in rows):
        raise click.exceptions.Exit(1)


def _measured(attack: Attack, server: Server, count: int) -> float:
    """Sends them all; gives the share by which the server's memory grew after the first tenth."""
    bar = track(range(count), "attacking", console=Console(stderr=True))
    after_a_tenth = []

    def indexes() -> Iterator[int]:
        for index in bar:
            if index == count // 10:
                after_a_tenth.append(server.memory_bytes)
            yield index

    attack.run(indexes())
    return server.memory_bytes / after_a_tenth[0] - 1


def _name(model: Path) -> str:
    return OnnxEngine(model, "cpu", intra_op_threads=1).metadata.name


if __name__ == "__main__":
    main()
