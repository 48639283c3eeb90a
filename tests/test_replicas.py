"""Three real replicas behind the balancer under steady load: whatever happens to a replica, no caller sees a failure or
a wrong answer.

The replicas are processes, started by the command of the Dockerfile in the environment of docker-compose.yml, and the
balancer is HAProxy with the configuration that ships.
"""

import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from balancer import PATIENCE_S, Balancer, balancing, free_port
from containers import image_command, in_environment, replica_environment
from serving import plain, wait_until
from tiny_reader import REVERSED, write_version

ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
CALLERS = 4
PAUSE_S = 0.01


class Replica:
    """A reader on an address of its own, which can be started again."""

    def __init__(self, address: str, port: int, repository: Path, log: Path) -> None:
        self.url = f"http://{address}:{port}"
        self._log = log
        here = {
            "HOUSENUMBER_HOST": address,
            "HOUSENUMBER_PORT": str(port),
            "HOUSENUMBER_MODEL_REPOSITORY": str(repository),
        }
        self._environment = in_environment(**replica_environment() | here)
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(image_command("cpu"), env=self._environment, stderr=log)

    def stop(self) -> None:
        """As an orchestrator does; it drains, and leaves nothing unanswered behind."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0, self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def revive(self) -> None:
        """After whatever a test that failed has left behind."""
        self.process.send_signal(signal.SIGCONT)
        if self.process.poll() is not None:
            self.start()

    def version(self) -> str:
        """Of the model that it answers with."""
        answer = httpx.post(f"{self.url}/predict", content=plain("1"), timeout=PATIENCE_S, trust_env=False)
        version: str = answer.json()["model"]["version"]
        return version


class Load:
    """Callers that send one image after the other, all different, and look at every answer."""

    def __init__(self, url: str) -> None:
        self.failures: list[str] = []
        self.answers = [0] * CALLERS
        self.versions: set[str] = set()
        self._url = url
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(index,)) for index in range(CALLERS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Until every caller, also one that waits for an answer at the moment, has had five more."""
        before = list(self.answers)
        wait_until(
            lambda: bool(self.failures) or all(now >= then + 5 for now, then in zip(self.answers, before, strict=True)),
            PATIENCE_S,
        )
        assert self.failures == []

    def _call(self, index: int) -> None:
        draw = random.Random(index)
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S, trust_env=False) as client:
            while not self._stopping.wait(PAUSE_S):
                number = str(draw.randrange(1000))
                side = draw.choice((16, 60, 300))  # up to 270 kB
                try:
                    response = client.post("/predict", content=plain(number, (side, side), "BMP"))
                    self._look_at(response, number)
                except Exception as error:
                    self.failures.append(repr(error))
                self.answers[index] += 1

    def _look_at(self, response: httpx.Response, number: str) -> None:
        answer = response.raise_for_status().json()
        version, read = answer["model"]["version"], answer["predictions"][0]["number"]
        self.versions.add(version)
        expected = number if version == "1" else "".join(REVERSED[int(digit)] for digit in number)
        if read != expected:
            self.failures.append(f"version {version} read {read}, not {expected}")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the tiny reader's first version."""
    root = tmp_path_factory.mktemp("repository")
    write_version(root, 1)
    return root


@pytest.fixture(scope="module")
def replicas(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    directory = tmp_path_factory.mktemp("replicas")
    port = free_port(ADDRESSES[0])
    with ExitStack() as stack:
        started = []
        for address in ADDRESSES:
            started.append(Replica(address, port, repository, directory / f"{address}.log"))
            stack.callback(started[-1].kill)  # ends one that is stopped, too
        yield started


@pytest.fixture(scope="module")
def running(replicas: list[Replica], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    port = httpx.URL(replicas[0].url).port
    assert port is not None
    with balancing(tmp_path_factory.mktemp("balancer"), ADDRESSES, port) as balancer:
        yield balancer


@pytest.fixture
def balancer(running: Balancer, replicas: list[Replica]) -> Balancer:
    """The balancer in front of three replicas that are ready."""
    for replica in replicas:
        replica.revive()
    running.wait_for(3)
    return running


@contextmanager
def nobody_notices(balancer: Balancer) -> Iterator[Load]:
    """Callers before, while and after something happens; it fails where one of them got no answer, or a wrong one."""
    with Load(balancer.url) as load:
        load.go_on()
        yield load
        load.go_on()


def test_all_are_started_anew_one_after_the_other(balancer: Balancer, replicas: list[Replica]) -> None:
    with nobody_notices(balancer):
        for replica in replicas:
            replica.stop()
            replica.start()
            balancer.wait_for(3)


def test_one_is_killed(balancer: Balancer, replicas: list[Replica]) -> None:
    with nobody_notices(balancer) as load:
        replicas[0].kill()
        balancer.wait_for(2)
        load.go_on()
        replicas[0].start()
        balancer.wait_for(3)


def test_one_freezes(balancer: Balancer, replicas: list[Replica]) -> None:
    with nobody_notices(balancer) as load:
        replicas[1].process.send_signal(signal.SIGSTOP)
        balancer.wait_for(2)
        load.go_on()  # what it was sent is answered by the others
        replicas[1].process.send_signal(signal.SIGCONT)
        balancer.wait_for(3)


def test_all_change_the_model(balancer: Balancer, replicas: list[Replica], repository: Path) -> None:
    with nobody_notices(balancer) as load:
        assert load.versions == {"1"}
        # Written elsewhere and moved: a folder of that name is whole from the first moment on.
        written = write_version(repository.parent / f"{repository.name}-new", 2, alphabet=REVERSED)
        written.parent.rename(repository / "tiny/2")
        for replica in replicas:
            replica.process.send_signal(signal.SIGHUP)
        wait_until(lambda: {replica.version() for replica in replicas} == {"2"}, PATIENCE_S)
        load.go_on()
        load.versions.clear()
        load.go_on()
        assert load.versions == {"2"}
