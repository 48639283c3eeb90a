"""One job at a time in an output.

On this machine the operating system holds the lock, and lets go when the process ends, however it ends. Elsewhere there
is no such thing: a small file says who writes, and is written anew every few seconds; whoever comes while it is fresh
is refused. That is enough against a mistake, and two jobs that slip past each other write the same rows into the same
parts.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.scoring.job import LOCK, JobError
from service.scoring.storage import Place
from service.scoring.transfers import StorageError

BEAT_S = 10.0
# So many beats without a new one, and its writer is taken for dead.
_PATIENCE = 3


@contextmanager
def locked(out: Place) -> Iterator[None]:
    """Holds the lock of an output; raises JobError where somebody else does."""
    with _flocked(out) if out.is_local else _leased(out / LOCK):
        yield


@contextmanager
def _flocked(out: Place) -> Iterator[None]:
    Path(out.key).mkdir(parents=True, exist_ok=True)
    with Path((out / LOCK).key).open("a") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JobError(f"{out}: another process is writing it") from None
        yield


@contextmanager
def _leased(place: Place) -> Iterator[None]:
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
    _wait_for_dead(place)
    place.write(json.dumps(owner).encode())
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT_S):
            count += 1
            try:
                place.write(json.dumps({**owner, "beat": count}).encode())
            except (OSError, StorageError):
                continue  # the job itself will meet the storage's trouble, and say so

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError, StorageError):
            place.delete()


def _wait_for_dead(place: Place) -> None:
    """Returns when nobody holds the lease; raises JobError when somebody does."""
    if place.entry() is None:
        return
    before = place.read()
    holder = json.loads(before)
    who = f"process {holder['pid']} on {holder['host']}"
    if holder["host"] == socket.gethostname():
        if _is_alive(holder["pid"]):
            raise JobError(f"{place}: {who} is writing this output")
        return
    # The clocks of two machines may differ; that the file changes does not depend on them.
    time.sleep(_PATIENCE * BEAT_S)
    if place.entry() is not None and place.read() != before:
        raise JobError(f"{place}: {who} is writing this output")


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
