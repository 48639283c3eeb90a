"""CPU quotas of control groups, as files of both versions."""

from pathlib import Path

import pytest

import service.cpus
from service.cpus import CpuBudget, cgroup_quota, usable_cpus


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def membership(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "membership"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_version_2_takes_the_smallest_quota_on_the_way_up(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root, cpu__max="max 100000")
    group(root / "a", cpu__max="150000 100000")
    group(root / "a/b", cpu__max="400000 100000")
    group(root / "c", cpu__max="max 100000")
    assert cgroup_quota(root, membership(tmp_path, "0::/a/b")) == 1.5
    assert cgroup_quota(root, membership(tmp_path, "0::/a")) == 1.5
    assert cgroup_quota(root, membership(tmp_path, "0::/c")) is None


def test_version_1_reads_quota_and_period(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(root / "cpu/a", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    lines = ("5:memory:/a", "4:cpu,cpuacct:/a", "3:cpuset:/a", "0::/")
    assert cgroup_quota(root, membership(tmp_path, *lines)) == 0.5
    assert cgroup_quota(root, membership(tmp_path, "4:cpu,cpuacct:/", "0::/")) is None


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root, cpu__max="200000 100000")
    assert cgroup_quota(root, membership(tmp_path, "0::/docker/0123abc")) == 2.0


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "missing") is None
    assert cgroup_quota(tmp_path, membership(tmp_path, "0::/a")) is None


def test_beside_version_1_version_2_is_mounted_as_unified(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root / "unified/a", cpu__max="150000 100000")
    assert cgroup_quota(root, membership(tmp_path, "5:memory:/a", "0::/a")) == 1.5
    group(root / "cpu,cpuacct/a", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert cgroup_quota(root, membership(tmp_path, "4:cpu,cpuacct:/a", "0::/a")) == 0.5


def test_a_group_outside_the_namespace_has_the_quota_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root, cpu__max="300000 100000")
    assert cgroup_quota(root, membership(tmp_path, "0::/../other/a")) == 3.0


@pytest.mark.parametrize("text", ["", "max", "1 2 3", "many 100000", "100000 0", "-1 100000x"])
def test_files_that_say_something_else_are_passed_over(tmp_path: Path, text: str) -> None:
    root = tmp_path / "fs"
    group(root, cpu__max="200000 100000")
    group(root / "a", cpu__max=text)
    assert cgroup_quota(root, membership(tmp_path, "0::/a")) == 2.0


def test_the_budget_says_what_it_rests_on() -> None:
    assert str(CpuBudget(8, None)) == "8 CPUs in the affinity mask, no quota"
    assert str(CpuBudget(8, 2.5)) == "8 CPUs in the affinity mask, a quota of 2.5"
    assert str(CpuBudget(8, 2.5, 2)) == "8 CPUs in the affinity mask, a quota of 2.5, for 2 workers"


@pytest.mark.parametrize(
    ("affinity", "quota", "workers", "usable"),
    [(8, None, 2, 4), (8, None, 3, 2), (2, None, 4, 1), (8, 5.5, 2, 2), (8, 0.5, 2, 1)],
)
def test_workers_share_the_cpus(affinity: int, quota: float | None, workers: int, usable: int) -> None:
    assert CpuBudget(affinity, quota, workers).usable == usable


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"), [(8, None, 8), (8, 2.5, 2), (8, 0.5, 1), (2, 16.0, 2), (1, 1.0, 1)]
)
def test_usable_cpus_are_the_smaller_of_mask_and_quota(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, usable: int
) -> None:
    monkeypatch.setattr("service.cpus.os.sched_getaffinity", lambda _process: set(range(affinity)))
    monkeypatch.setattr(service.cpus, "cgroup_quota", lambda _root, _membership: quota)
    assert usable_cpus() == usable
