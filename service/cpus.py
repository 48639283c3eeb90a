"""How many CPUs this process may really use: what threads are sized from.

A library that asks for the number of CPUs is told of the machine's, and in a container that was given two of
sixty-four it starts sixty-four threads that wait for each other. What counts is the smaller of the affinity
mask and the quota of the control group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class CpuBudget:
    """CPUs in the affinity mask, and CPUs' worth of time that the control group gives (None: no quota); for a number of
    processes that share them evenly."""

    affinity: int
    quota: float | None
    workers: int = 1

    @property
    def usable(self) -> int:
        """CPUs each process may keep busy, at least 1. A quota of 2.5 CPUs gives 2: a third thread would be stopped
        for half of every period, and the other two would wait for it."""
        cpus = self.affinity if self.quota is None else min(self.affinity, int(self.quota))
        return max(1, cpus // self.workers)

    def __str__(self) -> str:
        quota = "no quota" if self.quota is None else f"a quota of {self.quota:g}"
        shared = "" if self.workers == 1 else f", for {self.workers} workers"
        return f"{self.affinity} CPUs in the affinity mask, {quota}{shared}"


def cpu_budget(workers: int = 1) -> CpuBudget:
    """Of this process, which is one of so many that share it."""
    # os.sched_getaffinity does not exist on macOS and Windows, which have no control groups either.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return CpuBudget(affinity, cgroup_quota(_CGROUP_ROOT, _MEMBERSHIP), workers)


def usable_cpus(workers: int = 1) -> int:
    """CPUs this process may keep busy, at least 1: see `CpuBudget.usable`."""
    return cpu_budget(workers).usable


def cgroup_quota(root: Path, membership: Path) -> float | None:
    """The smallest CPU quota on the way from this process's control group up to the root; None without a quota.

    Reads version 2 (`cpu.max`), version 1 (`cpu.cfs_quota_us`, `cpu.cfs_period_us`), and both where they are mounted
    side by side. A container often sees its own group mounted as the root while its membership names a path of the
    host: files that are not there, or that say something else, are passed over.
    """
    quotas = [quota for folder in _groups(root, membership) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    """The folders that may hold a quota."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        # "0::/path" is version 2; "4:cpu,cpuacct:/path" is a controller of version 1.
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root, root / "unified"]  # the second beside version 1
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / controllers]
        else:
            continue
        group = PurePosixPath("/") / path
        for ancestor in (group, *group.parents):
            yield from (mount / ancestor.relative_to("/") for mount in mounts)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        # Without a limit version 2 writes "max" and version 1 writes -1.
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
