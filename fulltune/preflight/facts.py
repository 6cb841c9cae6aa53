"""What a worker is: its node, device, memory, driver, versions and limits; and whether all workers are of a kind."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import fulltune
from fulltune import device
from fulltune.plan.planner import gb
from fulltune.preflight.check import Check, judged

LIBRARIES = ("torch", "ray", "deepspeed", "transformers")
MIB = 2**20
# NCCL passes data between the GPUs of a node through /dev/shm; Docker gives 64 MiB unless told otherwise
SHM_GPU = 1024 * MIB
SHM_CPU = 32 * MIB
OPEN_FILES = 4096  # Ray's processes hold a connection to every worker; 1,024, a common default, is soon used up


@dataclass(frozen=True, slots=True)
class Facts:
    """One worker.

    Attributes:
        device: as the vendor calls it.
        device_memory: bytes of a GPU; None on a CPU.
        driver: of the GPU; None on a CPU.
        host_memory: bytes that the processes of the node, or of its container, may use.
        host_available: of them, what nobody used at that moment.
        resident: what this process used.
        shm: bytes free in /dev/shm.
        open_files: soft limit.
    """

    rank: int
    node: str
    device: str
    device_memory: int | None
    driver: str | None
    versions: dict[str, str]
    host_memory: int
    host_available: int
    resident: int
    shm: int
    open_files: int

    def as_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return asdict(self)


def collect(rank: int, *, use_gpu: bool) -> Facts:
    """The facts of this process."""
    name, memory, driver = _gpu() if use_gpu else (_processor(), None, None)
    limit, available = host_memory()
    return Facts(
        rank=rank,
        node=socket.gethostname(),
        device=name,
        device_memory=memory,
        driver=driver,
        versions=versions() | (device.cuda_versions() if use_gpu else {}),
        host_memory=limit,
        host_available=available,
        resident=status("VmRSS"),
        shm=_free("/dev/shm"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def versions() -> dict[str, str]:
    """Of Python, the libraries, and fulltune with a digest of its code: a stale copy has the same number."""
    found = {name: metadata.version(name) for name in LIBRARIES}
    return {"python": sys.version.split()[0]} | found | {"fulltune": f"{fulltune.__version__}+{_code()}"}


def _code() -> str:
    digest = hashlib.sha256()
    folder = Path(fulltune.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def _gpu() -> tuple[str, int, str | None]:
    return *device.gpu_name_and_memory(device.current_gpu()), _driver()


def _driver(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The kernel module's version, as in "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu ..."."""
    if not file.is_file():
        return None
    words = file.read_text().split("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return named or platform.machine()


def host_memory() -> tuple[int, int]:
    """Bytes that the container, or else the machine, may use, and how many of them are free to take."""
    table = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (1024 * int(table[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    limit, used = _cgroup()
    if limit is None or limit >= total:
        return total, available
    return limit, min(available, max(0, limit - used))


def _cgroup(root: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """Limit and use of a container's memory, cgroup version 2 or 1; no limit where there is none.

    Files that are cached do not count as used: the kernel gives them up when a process wants the memory, and Ray's own
    watch leaves them out too.
    """
    for folder, limit, used, files in (
        (root, "memory.max", "memory.current", "{}_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_{}_file"),
    ):
        if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()) != "max":
            cached = _cached(folder / "memory.stat", {files.format(kind) for kind in ("active", "inactive")})
            return int(text), max(0, int((folder / used).read_text()) - cached)
    return None, 0


def _cached(stat: Path, names: set[str]) -> int:
    """The sum of these lines of a cgroup's memory.stat."""
    lines = (line.split() for line in stat.read_text().splitlines()) if stat.is_file() else ()
    return sum(int(value) for name, value in lines if name in names)


def status(key: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS, what is resident; VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def _free(folder: str) -> int:
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def by_node(everybody: Iterable[Facts]) -> dict[str, list[Facts]]:
    """The workers of each node."""
    nodes: dict[str, list[Facts]] = {}
    for facts in everybody:
        nodes.setdefault(facts.node, []).append(facts)
    return nodes


def check_versions(everybody: Sequence[Facts], driver: dict[str, str]) -> Check:
    """The same libraries everywhere, on the machine that gives the command too."""
    places = [("the driver", driver), *((f"worker {facts.rank}", facts.versions) for facts in everybody)]
    names = dict.fromkeys(name for _, found in places for name in found)
    named = [f"{name} {'; '.join(f'{value} on {who}' for value, who in found.items())}"
             for name in names if len(found := _groups(places, name)) > 1]  # fmt: skip
    alike = ", ".join(f"{name} {value}" for name, value in everybody[0].versions.items())
    return judged(
        "versions",
        ok=not named,
        got=". ".join(named) or alike,
        wanted="the same versions on the driver and every worker",
        fix="use one container image for all nodes, or `fulltune submit`, which sends this code to all of them",
    )


def _groups(places: Iterable[tuple[str, dict[str, str]]], name: str) -> dict[str, str]:
    """Value -> who has it; a driver without a GPU has no CUDA, and nothing to compare."""
    groups: dict[str, list[str]] = {}
    for who, found in places:
        if name in found:
            groups.setdefault(found[name], []).append(who)
    return {value: ", ".join(who) for value, who in groups.items()}


def check_devices(everybody: Sequence[Facts]) -> Check:
    """One kind of device; for GPUs one driver too. Different processors are told, and slow down all to the slowest."""
    groups = _told(everybody, lambda facts: _device(facts))
    alike = len(groups) == 1 or everybody[0].device_memory is None
    return judged(
        "devices",
        ok=alike,
        got="; ".join(f"{what} on {who}" for what, who in groups.items()),
        wanted="the same GPU and driver on every worker",
        fix="set ray.accelerator_type, or take nodes of one type and image: the smallest and slowest decides for all",
    )


def _device(facts: Facts) -> str:
    if facts.device_memory is None:
        return facts.device
    return f"{facts.device} ({gb(facts.device_memory)}, driver {facts.driver or 'unknown'})"


def _told(everybody: Iterable[Facts], what: Callable[[Facts], str]) -> dict[str, str]:
    groups: dict[str, list[Facts]] = {}
    for facts in everybody:
        groups.setdefault(what(facts), []).append(facts)
    return {text: workers(group) for text, group in groups.items()}


def workers(group: Sequence[Facts]) -> str:
    """`worker 3 on node-2`, or `8 workers on node-1, node-2`."""
    nodes = ", ".join(sorted({facts.node for facts in group}))
    return f"worker {group[0].rank} on {nodes}" if len(group) == 1 else f"{len(group)} workers on {nodes}"


def check_shared_memory(everybody: Sequence[Facts], *, use_gpu: bool) -> Check:
    """Room in /dev/shm on every node."""
    wanted = SHM_GPU if use_gpu else SHM_CPU
    least = min(everybody, key=lambda facts: facts.shm)
    return judged(
        "shared memory",
        ok=least.shm >= wanted,
        got=f"{gb(least.shm)} free in /dev/shm on {least.node}",
        wanted=f"at least {gb(wanted)} per node",
        fix="start the container with --shm-size=8g; on Kubernetes mount an emptyDir of medium Memory at /dev/shm",
    )


def check_open_files(everybody: Sequence[Facts]) -> Check:
    """Descriptors that a worker may hold."""
    least = min(everybody, key=lambda facts: facts.open_files if facts.open_files >= 0 else sys.maxsize)
    return judged(
        "open files",
        ok=least.open_files < 0 or least.open_files >= OPEN_FILES,  # -1: no limit
        got=f"a limit of {least.open_files:,} on {least.node}" if least.open_files >= 0 else "no limit",
        wanted=f"at least {OPEN_FILES:,}",
        fix="ulimit -n 65536 before `ray start`, or --ulimit nofile=65536:65536 for the container",
    )
