"""Several workers on one port: `housenumber serve --workers 2`, real processes, and what becomes of them."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_process import PATIENCE_S, ServiceProcess, python_finds, service_process
from serving import plain, wait_until
from test_model_swap import ADMIN, load
from tiny_reader import REVERSED, write_artifact, write_version

IMAGE = plain("42")
KEYS = "alice:red\n"
RED = {"X-API-Key": "red"}


def flags(*more: str) -> tuple[str, ...]:
    return "--workers", "2", "--provider", "cpu", *more


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEYS)
    return file


@pytest.fixture(scope="module")
def server(artifact: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Two workers that are ready."""
    log = tmp_path_factory.mktemp("server") / "log"
    with service_process(log, *flags("--model", str(artifact), "--api-keys-file", str(keys))) as server:
        server.wait_until_ready()
        # The first 200 comes when all are warm, not when the one that answers is.
        assert len(server.started(0)) == len(server.started(1)) == 1
        yield server


@contextmanager
def clients_of_both(server: ServiceProcess) -> Iterator[list[httpx.Client]]:
    """Connections of which each worker has at least one."""
    with ExitStack() as stack:
        clients: list[httpx.Client] = []
        while len(set(map(worker_of, clients))) < 2:
            assert len(clients) < 100, "one worker takes all connections"
            clients.append(stack.enter_context(server.client()))
            clients[-1].headers.update(RED)
            assert clients[-1].get("/livez").status_code == 200
        yield clients


def worker_of(client: httpx.Client) -> int:
    """The process that has the other end of the client's connection."""
    response = client.get("/livez")
    local = response.extensions["network_stream"].get_extra_info("client_addr")[1]
    remote = client.base_url.port
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # A set: the file is not read at one moment, and what moves meanwhile may stand in it twice.
    (inode,) = {row[9] for row in rows if row[1].endswith(f":{remote:04X}") and row[2].endswith(f":{local:04X}")}
    (process,) = [process for process in served_by(client) if f"socket:[{inode}]" in open_files(process)]
    return process


def served_by(client: httpx.Client) -> set[int]:
    """The processes that listen on the client's port, be it only as the heirs of those who do."""
    port = f":{client.base_url.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = {row[9] for row in rows if row[1].endswith(port) and row[3] == "0A"}
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {process for process in processes if f"socket:[{inode}]" in open_files(process)}


def open_files(process: int) -> set[str]:
    files = set()
    with suppress(OSError):  # it has ended, or is not ours
        for file in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                files.add(str(file.readlink()))
    return files


def value(client: httpx.Client, name: str, **labels: str) -> float:
    values = [
        sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(values) <= 1, "the workers' series were not added up"
    return values[0] if values else 0.0


def predicted(client: httpx.Client) -> float:
    return value(client, "housenumber_requests_total", route="/predict", status="200", code="ok")


def test_the_workers_share_the_cpus(server: ServiceProcess) -> None:
    lines = [line for line in server.log.splitlines() if "running on the CPU" in line]
    assert len(lines) == 2
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert all(f"batches at a time: {share}, threads" in line and "for 2 workers)" in line for line in lines)


def test_metrics_are_of_all_workers_whichever_answers(server: ServiceProcess) -> None:
    with clients_of_both(server) as clients:
        before = predicted(clients[0])
        for client in clients:
            assert client.post("/predict", content=IMAGE).json()["predictions"][0]["number"] == "42"
        # Requests are counted when their answer has been sent.
        wait_until(lambda: all(predicted(client) >= before + len(clients) for client in clients), PATIENCE_S)
        for client in clients:
            assert predicted(client) == before + len(clients)
            assert value(client, "housenumber_workers") == 2
            assert value(client, "housenumber_requests_in_flight") == 0
            assert client.get("/metrics").text.count("\nhousenumber_model_info{") == 1
            memory = value(client, "process_resident_memory_bytes")
            assert memory > 1.2 * resident(server.started(0)[-1])


def resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_signal_reloads_the_keys_in_all_workers(server: ServiceProcess, keys: Path) -> None:
    with clients_of_both(server) as clients:
        keys.write_text(f"{KEYS}bob:blue\n")
        server.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: {status(client, "blue") for client in clients} == {200}, PATIENCE_S)
        assert {status(client, "red") for client in clients} == {200}
        assert {status(client, "green") for client in clients} == {401}


def status(client: httpx.Client, key: str) -> int:
    return client.post("/predict", content=IMAGE, headers={"X-API-Key": key}).status_code


class Stream:
    """A caller without a pause, on one connection, or on a new one each time. `failures` are lost connections."""

    def __init__(self, server: ServiceProcess, method: str, path: str, *, keep: bool) -> None:
        self.client = server.client()
        self.client.headers.update(RED if keep else {**RED, "Connection": "close"})
        self.statuses: list[int] = []
        self.failures = 0
        self._request = method, path
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.client.close()

    def _ask(self) -> None:
        method, path = self._request
        while not self._stopped.is_set():
            try:
                answer = self.client.request(method, path, content=IMAGE if method == "POST" else None)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                self.failures += 1
            else:
                self.statuses.append(answer.status_code)


def test_a_worker_that_is_killed_is_replaced_and_no_one_elses_request_is_lost(server: ServiceProcess) -> None:
    with clients_of_both(server) as clients, ExitStack() as stack:
        counted = predicted(clients[0])
        keeping = [stack.enter_context(Stream(server, "POST", "/predict", keep=True)) for _ in range(4)]
        probing = stack.enter_context(Stream(server, "GET", "/readyz", keep=False))
        streams = [*keeping, probing]
        wait_until(lambda: all(stream.statuses for stream in streams), PATIENCE_S)
        victim = server.started(0)[-1]
        others = [client for client in clients if worker_of(client) != victim]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(server.started(0)) == 2, PATIENCE_S)
        marks = [len(stream.statuses) for stream in streams]
        wait_until(lambda: all(len(s.statuses) > m for s, m in zip(streams, marks, strict=True)), PATIENCE_S)
        # A connection is lost once at most, and by the one worker: a second loss would be somebody else's.
        assert max(stream.failures for stream in streams) <= 1
        assert {status for stream in streams for status in stream.statuses} == {200}
        for client in others:
            assert client.post("/predict", content=IMAGE).status_code == 200
        stack.close()
        answered = sum(len(stream.statuses) for stream in keeping) + len(others)
        # The dead worker's requests stay counted, but for what it had answered and not yet counted when it died.
        wait_until(lambda: predicted(others[0]) >= counted + answered - len(keeping), PATIENCE_S)
        assert predicted(others[0]) <= counted + answered + len(keeping)
        assert value(others[0], "housenumber_worker_restarts_total") == 1
        wait_until(lambda: value(others[0], "housenumber_workers") == 2, PATIENCE_S)
        wait_until(lambda: value(others[0], "housenumber_requests_in_flight") == 0, PATIENCE_S)
        assert "worker 0 ended by SIGKILL; another one takes its place in 0 s" in server.log


def test_a_worker_that_hangs_is_replaced(artifact: Path, tmp_path: Path) -> None:
    """It is frozen: alive, and with connections that nobody answers."""
    with service_process(tmp_path / "log", *flags("--model", str(artifact), "--worker-timeout-s", "2")) as server:
        server.wait_until_ready()
        with clients_of_both(server) as clients, ExitStack() as stack:
            victim = server.started(0)[-1]
            others = [client for client in clients if worker_of(client) != victim]
            probing = stack.enter_context(Stream(server, "GET", "/readyz", keep=False))
            wait_until(lambda: bool(probing.statuses), PATIENCE_S)
            os.kill(victim, signal.SIGSTOP)
            wait_until(lambda: len(server.started(0)) == 2, PATIENCE_S)
            assert "worker 0 has given no sign of life for 2 s: it is killed" in server.log
            wait_until(lambda: value(others[0], "housenumber_workers") == 2, PATIENCE_S)
            assert value(others[0], "housenumber_worker_restarts_total") == 1
            assert {client.post("/predict", content=IMAGE).status_code for client in others} == {200}
            assert set(probing.statuses) == {200}
        assert len(server.started(1)) == 1


def test_workers_that_were_frozen_with_their_supervisor_live_on(artifact: Path, tmp_path: Path) -> None:
    """As when a virtual machine is moved: they have been silent for longer than they may, but so has it."""
    with service_process(tmp_path / "log", *flags("--model", str(artifact), "--worker-timeout-s", "2")) as server:
        server.wait_until_ready()
        everybody = [server.popen.pid, server.started(0)[-1], server.started(1)[-1]]
        for process in everybody:
            os.kill(process, signal.SIGSTOP)
        time.sleep(4)
        for process in everybody:  # the one that watches comes first, and sees them silent
            os.kill(process, signal.SIGCONT)
        time.sleep(4)
        with server.client() as client:
            assert client.post("/predict", content=IMAGE).status_code == 200
        assert len(server.started(0)) == len(server.started(1)) == 1
        assert "no sign of life" not in server.log


def test_the_end_of_the_supervisor_ends_the_workers(artifact: Path, tmp_path: Path) -> None:
    with service_process(tmp_path / "log", *flags("--model", str(artifact))) as server:
        server.wait_until_ready()
        with server.client() as client:
            assert client.get("/livez").status_code == 200
            (folder,) = {Path(file).parent for file in open_files(server.popen.pid) if file.endswith("_supervisor.db")}
            assert folder.is_dir()
            server.popen.kill()
            workers = [server.started(place)[-1] for place in (0, 1)]
            wait_until(lambda: not any(map(is_running, workers)), PATIENCE_S)
        assert server.log.count("the supervisor is gone") == 2
        assert not folder.exists()


def is_running(process: int) -> bool:
    try:
        # Dead children of somebody who does not ask for them stay as zombies.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def inside(server: ServiceProcess) -> Iterator[socket.socket]:
    """A request that a worker has accepted, and whose body it waits for."""
    url = httpx.URL(server.url)
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(IMAGE)}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE_S) as caller:
        caller.sendall(head.encode())
        assert b" 100 " in caller.recv(1000)
        yield caller


def test_a_signal_to_the_whole_group_drains_once(artifact: Path, tmp_path: Path) -> None:
    """As a terminal sends it on Ctrl-C: what was accepted is answered all the same."""
    with service_process(tmp_path / "log", *flags("--model", str(artifact), "--drain-delay-s", "1")) as server:
        server.wait_until_ready()
        with clients_of_both(server) as clients, inside(server) as caller:
            os.killpg(server.popen.pid, signal.SIGINT)
            wait_until(lambda: {client.get("/readyz").status_code for client in clients} == {503}, PATIENCE_S)
            wait_until(lambda: server.log.count("no longer listening") == 2, PATIENCE_S)
            caller.sendall(IMAGE)
            assert b" 200 " in caller.recv(1000)
        assert server.ends() == 0
        assert "Traceback" not in server.log


def test_a_second_signal_stops_all_workers(artifact: Path, tmp_path: Path) -> None:
    with service_process(tmp_path / "log", *flags("--model", str(artifact), "--drain-delay-s", "600")) as server:
        server.wait_until_ready()
        with inside(server):
            server.popen.send_signal(signal.SIGTERM)
            wait_until(lambda: server.log.count("draining") == 2, PATIENCE_S)
            server.popen.send_signal(signal.SIGTERM)
            assert server.ends() == 7
        assert not any(is_running(server.started(place)[-1]) for place in (0, 1))


def test_a_model_that_cannot_be_loaded_is_one_line_and_its_own_code(tmp_path: Path) -> None:
    stranger = write_artifact(tmp_path / "stranger.onnx", properties={})
    with service_process(tmp_path / "log", *flags("--model", str(stranger))) as server:
        assert server.ends() == 5
        (line,) = [line for line in server.log.splitlines() if "CRITICAL" in line]
        assert "the model could not be loaded" in line
        assert "stranger.onnx: not an artifact of this project" in line
        assert "Traceback" not in server.log


def test_when_no_worker_can_start_the_service_gives_up(artifact: Path, tmp_path: Path) -> None:
    """Each worker kills itself before it has loaded anything."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif '--multiprocessing-fork' in sys.orig_argv:\n    os.kill(os.getpid(), 9)\n"
    )
    with service_process(tmp_path / "log", *flags("--model", str(artifact)), env=python_finds(tmp_path)) as server:
        assert server.ends() == 8
        (line,) = [line for line in server.log.splitlines() if "CRITICAL" in line]
        assert "no worker can be started; the last one ended by SIGKILL" in line
        assert "takes its place in 1 s" in server.log


def test_a_version_that_one_worker_loads_all_load_and_also_the_next(tmp_path: Path) -> None:
    """Version 2 is the newest; version 1 is chosen through the API, by whichever worker that reaches."""
    root = tmp_path / "models"
    write_version(root, 1)
    write_version(root, 2, alphabet=REVERSED)
    more = ("--model-repository", str(root))
    with service_process(tmp_path / "log", *flags(*more), env={"HOUSENUMBER_ADMIN_KEYS": "boss"}) as server:
        server.wait_until_ready()
        with clients_of_both(server) as clients:
            assert {number(client) for client in clients} == {"57"}
            clients[0].headers.update(ADMIN)
            assert load(clients[0], 1).status_code == 200
            assert {number(client) for client in clients} == {"42"}
        os.kill(server.started(1)[-1], signal.SIGKILL)
        wait_until(lambda: len(server.started(1)) == 2, PATIENCE_S)
        with clients_of_both(server) as clients:
            assert {number(client) for client in clients} == {"42"}
            assert clients[0].get("/metrics").text.count("\nhousenumber_model_info{") == 1
            # A version that cannot be loaded stays with nobody.
            (root / "tiny/3").mkdir()
            (root / "tiny/3/model.onnx").write_bytes(b"junk")
            server.popen.send_signal(signal.SIGHUP)
            clients[0].headers.update(ADMIN)
            assert load(clients[0], 3).status_code == 400
            assert {number(client) for client in clients} == {"42"}


@pytest.mark.parametrize("seconds", [0, 2])
def test_a_worker_that_is_being_replaced_also_gets_what_is_loaded_meanwhile(seconds: int, tmp_path: Path) -> None:
    """At once, when the new process has not begun yet, and while it takes so many seconds to load what it was told to
    begin with."""
    slowly = "from service.engine import OnnxEngine as E\nimport time\nload = E.__init__\n"
    slowly += f"E.__init__ = lambda *args, **options: (time.sleep({seconds}), load(*args, **options))[1]\n"
    (tmp_path / "sitecustomize.py").write_text(slowly)
    root = tmp_path / "models"
    write_version(root, 1)
    write_version(root, 2, alphabet=REVERSED)
    env = {"HOUSENUMBER_ADMIN_KEYS": "boss", **python_finds(tmp_path)}
    with service_process(tmp_path / "log", *flags("--model-repository", str(root)), env=env) as server:
        server.wait_until_ready()
        os.kill(server.started(1)[-1], signal.SIGKILL)
        wait_until(lambda: "another one takes its place" in server.log, PATIENCE_S)
        with server.client() as client:
            client.headers.update(ADMIN)
            assert load(client, 1).status_code == 200
        wait_until(lambda: len(server.started(1)) == 2, PATIENCE_S)
        time.sleep(2 * seconds)  # in which it could still go back to what it began with
        with clients_of_both(server) as clients:
            assert {number(client) for client in clients} == {"42"}
        # So does the next one, which nobody tells anything.
        os.kill(server.started(1)[-1], signal.SIGKILL)
        wait_until(lambda: len(server.started(1)) == 3, PATIENCE_S)
        with clients_of_both(server) as clients:
            assert {number(client) for client in clients} == {"42"}


def test_a_worker_that_begins_with_what_the_others_serve_follows_the_newest_as_they_do(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_version(root, 1)
    with service_process(tmp_path / "log", *flags("--model-repository", str(root))) as server:
        server.wait_until_ready()
        os.kill(server.started(1)[-1], signal.SIGKILL)
        wait_until(lambda: len(server.started(1)) == 2, PATIENCE_S)
        write_version(root, 2, alphabet=REVERSED)
        server.popen.send_signal(signal.SIGHUP)
        with clients_of_both(server) as clients:
            wait_until(lambda: {number(client) for client in clients} == {"57"}, PATIENCE_S)


def number(client: httpx.Client) -> str:
    read: str = client.post("/predict", content=IMAGE).json()["predictions"][0]["number"]
    return read
