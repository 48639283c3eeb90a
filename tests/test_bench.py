"""The instruments: what the load generator counts, and that the hostile requests would find a server that fails."""

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from serving import Held, plain, serving
from tiny_reader import metadata as tiny_metadata
from tiny_reader import write_artifact

from bench import hostile as hostile_bench
from bench import service as service_bench
from bench.balanced import balancing
from bench.ceiling import Arrangement, images_per_second
from bench.hostile import Attack
from bench.hostile_requests import hostile
from bench.images import jpegs
from bench.load import offer, post, saturate, send
from bench.readers import smallest_specs
from bench.report import Figures, Row
from bench.scoring import rate_between_parts
from models.evaluation.timing import RUNS_IN_A_ROW, milliseconds_per_image
from models.readers import READERS
from service.artifact import ArtifactMetadata
from service.engine import OnnxEngine, Outputs

GOOD, BAD = post("/predict", plain("42"), "image/png"), post("/predict", b"junk", "image/png")


def port_of(client: httpx.Client) -> int:
    assert client.base_url.port
    return client.base_url.port


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does this with every connection, and then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


# -- load ------------------------------------------------------------------------------------------------------------


def test_every_request_is_sent_and_counted_once(client: httpx.Client) -> None:
    load = send(port_of(client), [GOOD, GOOD, BAD], connections=4, count=30)
    assert load.answers == {200: 20, 422: 10}
    assert len(load.waits) == 20
    assert load.quantile(0) <= load.quantile(0.5) <= load.quantile(1)
    assert (load.broken, load.unsent) == (0, 0)
    assert load.good == 20 / load.seconds


def test_saturation_keeps_all_connections_busy(engine: OnnxEngine) -> None:
    held = Held(engine)
    with serving(held, max_batch_size=1) as client:
        threading.Timer(0.3, held.go_on.set).start()
        load = saturate(port_of(client), [GOOD], connections=5, warm_s=0, seconds=1)
        assert held.go_on.is_set()
    assert set(load.answers) == {200}
    assert load.answers[200] >= 5


def test_an_offer_does_not_wait_for_answers_and_says_what_it_could_not_send(engine: OnnxEngine) -> None:
    held = Held(engine)
    with serving(held) as client:
        try:
            load = offer(port_of(client), [GOOD], rate=100, connections=2, warm_s=0, seconds=0.5)
        finally:
            held.go_on.set()
    assert not load.answers
    assert load.unsent > 0


def test_connections_that_break_off_are_counted() -> None:
    with server(lambda connection: None) as port:
        load = send(port, [GOOD], connections=3, count=3)
    assert (load.broken, load.answers.total()) == (3, 0)


# -- hostile requests ------------------------------------------------------------------------------------------------


def test_hostile_requests_are_refused_and_good_ones_read(engine: OnnxEngine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), serving(engine, body_timeout_s=0.2) as client:
        attack = Attack(port_of(client), "tiny", seed=5, concurrency=16)
        attack.run(range(400))
    assert attack.failures == {}
    assert attack.outcomes["good: 200"] == 4
    assert attack.outcomes.total() == 400
    assert not caplog.records


def test_a_hostile_request_can_be_made_again() -> None:
    requests = [hostile(1, index, "tiny") for index in range(200)]
    assert requests == [hostile(1, index, "tiny") for index in range(200)]
    assert requests != [hostile(2, index, "tiny") for index in range(200)]
    assert len({request.kind for request in requests}) == 9


def test_a_server_that_fails_is_found_out() -> None:
    def fail(connection: socket.socket) -> None:
        connection.recv(2**16)
        connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno")

    with server(fail) as port:
        attack = Attack(port, "tiny", seed=1, concurrency=1)
        attack.run(range(3))
    assert attack.failures[0] == "good: 500 b'no'"


def test_a_server_that_hangs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_bench, "ANSWER_S", 0.1)
    over = threading.Event()

    def hang(_connection: socket.socket) -> None:
        over.wait()

    with server(hang) as port:
        attack = Attack(port, "tiny", seed=1, concurrency=1)
        try:
            attack.run([0])
        finally:
            over.set()
    assert attack.failures == {0: "good: neither answered nor closed within 0.1 s"}


# -- readers ---------------------------------------------------------------------------------------------------------


def test_every_reader_is_timed_at_its_smallest_size() -> None:
    sizes = {spec.reader: spec.input_height for spec in smallest_specs()}
    assert sizes.keys() == READERS.keys()
    assert (sizes["cnn"], sizes["compact"], sizes["compact_cnn"]) == (64, 96, 128)


class Noted:
    """An engine that answers nothing, and notes who was asked, for how many images."""

    sha256 = provider = ""
    parallel_batches = 1

    def __init__(self, name: str, asked: list[tuple[str, int]]) -> None:
        self.name, self.asked = name, asked

    @property
    def metadata(self) -> ArtifactMetadata:
        return tiny_metadata()

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        assert images.shape[1:] == (8, 8, 3)
        self.asked.append((self.name, len(images)))
        nothing = np.zeros((len(images), 0), np.float32)
        return Outputs(nothing, nothing, nothing)


def test_readers_are_timed_by_turns() -> None:
    asked: list[tuple[str, int]] = []
    rounds: list[int] = []
    engines = {name: Noted(name, asked) for name in ("first", "second")}
    times = milliseconds_per_image(engines, 3, 2, lambda: rounds.append(len(asked)))
    turn = [("first", 3)] * RUNS_IN_A_ROW + [("second", 3)] * RUNS_IN_A_ROW
    assert asked == [("first", 3), ("second", 3), *turn, *turn]
    assert rounds == [2 + len(turn), 2 + 2 * len(turn)]
    assert times.keys() == engines.keys()


# -- ceiling ---------------------------------------------------------------------------------------------------------


def test_the_sessions_of_all_processes_begin_together(tmp_path: Path) -> None:
    """The barrier is for all four: were one missing, it would break."""
    model = write_artifact(tmp_path / "tiny.onnx")
    photographs = jpegs(3, (16, 12))
    assert images_per_second(Arrangement(2, 2, 1, batch=4), model, photographs, 0.1) > 0


# -- figures ---------------------------------------------------------------------------------------------------------


def test_ratios_are_of_one_round_and_targets_have_a_side() -> None:
    figures = Figures()
    for ours, ceiling in ((8, 10), (90, 100), (1, 2)):
        figures.note("ours", ours)
        figures.note("ceiling", ceiling)
    assert figures.ratio("ours", "ceiling") == 0.8
    assert Row("ratio", 0.8, least=0.8).verdict == "met"
    assert Row("ratio", 0.79, least=0.8).verdict == "MISSED"
    assert Row("memory", 401, most=400).verdict == "MISSED"
    assert Row("report", 1).verdict == ""


def test_a_load_generator_of_its_own_needs_a_second_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {3})
    result = CliRunner().invoke(service_bench.main, ["--apart"])
    assert result.exit_code == 2
    assert "--apart needs two CPUs" in result.output


def test_the_balancer_that_is_measured_leads_to_the_reader(engine: OnnxEngine, tmp_path: Path) -> None:
    with serving(engine) as client, balancing(port_of(client), tmp_path) as balancer:
        balancer.wait_until_ready()
        assert send(balancer.port, [GOOD], connections=4, count=12).answers == {200: 12}
    assert "server-template" not in (tmp_path / "haproxy.cfg").read_text()


def test_a_batch_jobs_rate_is_taken_between_its_parts(tmp_path: Path) -> None:
    """Two workers: what was written up to the second part is their start."""
    for index, (seconds, rows) in enumerate([(100, 7), (101, 7), (103, 5), (105, 5), (105, 2)]):
        part = tmp_path / f"part-{index:05}.parquet"
        pq.write_table(pa.table({"id": [str(row) for row in range(rows)]}), part)
        os.utime(part, (seconds, seconds))
    assert rate_between_parts(tmp_path, workers=2) == (5 + 5 + 2) / (105 - 101)
