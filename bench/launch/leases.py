"""Which process works on which run: leases, files that are created exclusively, so that workers share a grid without a
coordinator.

The leases on a run are the files `results/.leases/<run id>/<number>`, each of which names its owner; the highest number
counts. A process takes a lease by hard-linking a complete file to the next number, which can succeed for one process
only. The lease of a dead owner is never removed in order to take its place (two processes that both see it dead could
remove each other's); the next number is taken instead.

An owner on this machine is alive as long as its process exists, identified by number and start time. An owner
elsewhere, also one in another container, is judged by the modification time of its lease, which it renews every 30
seconds: after five minutes without renewal it counts as dead. Both times are read from the clock of the shared file
system. A SLURM job that was requeued takes over its own earlier lease at once.

Two processes can end up with the same run if one is suspended for over five minutes and then resumed, or if a network
file system hides new files for that long. Both results would be correct, but not identical to the last byte (a history
holds speeds, a record holds times). So the first one to finish counts: the other finds a finished record when it is
about to write its own, leaves that and the files beside it alone (`bench.experiment`), and releases only its own lease.
Only time is lost. The file system must support hard links.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from bench.records.environment import slurm_job

RENEWED = 30.0  # seconds between renewals of a lease
DEAD = 300.0  # seconds without renewal after which an owner elsewhere counts as dead


@dataclass(frozen=True)
class Owner:
    """A process that holds a lease. `job` is its SLURM job, `restart` how often that job was requeued, `command_id` the
    command that it works for."""

    host: str
    boot: str
    pid: int
    born: str
    job: str
    restart: int
    command_id: str

    @classmethod
    def me(cls, command_id: str = "") -> Owner:
        job, restart = slurm_job()
        pid = os.getpid()
        return cls(socket.gethostname(), _boot(), pid, born(pid), job, restart, command_id)


class Leases:
    """The leases in a results folder."""

    def __init__(self, results: Path) -> None:
        self.root = results / ".leases"

    @contextmanager
    def hold(self, run_id: str, command_id: str = "") -> Iterator[bool]:
        """Take the lease on a run: True inside if this process has it, False if another one does; released at the
        end."""
        me = Owner.me(command_id)
        path = self._take(run_id, me)
        if path is None:
            yield False
            return
        ended = threading.Event()
        renewal = threading.Thread(target=_renew, args=(path, me, ended), daemon=True)
        renewal.start()
        try:
            yield True
        finally:
            ended.set()
            renewal.join()
            _release(path, me)

    def held(self, run_id: str) -> bool:
        """Whether a living process holds a lease on the run."""
        return any(_lives(path) for path in self._all(run_id))

    def dead(self, run_id: str) -> list[Owner]:
        """The owners that died while they held the run, the most recent last."""
        return [owner for path in self._all(run_id) if not _lives(path) and (owner := _read(path)) is not None]

    def _all(self, run_id: str) -> list[Path]:
        try:
            paths = [path for path in (self.root / run_id).iterdir() if path.name.isdecimal()]
        except FileNotFoundError:  # nobody holds one, or the last one is being released
            return []
        return sorted(paths, key=lambda path: int(path.name))

    def _take(self, run_id: str, me: Owner) -> Path | None:
        """This process's new lease, or None where another process holds the run or was faster."""
        folder = self.root / run_id
        for _ in range(10):  # whoever releases the last lease removes the folder, perhaps just now
            folder.mkdir(parents=True, exist_ok=True)
            found = self._all(run_id)
            if any(_lives(path, me) for path in found):
                return None
            path = folder / str(int(found[-1].name) + 1 if found else 1)
            mine = folder / f".{uuid.uuid4().hex}"
            try:
                mine.write_text(json.dumps(asdict(me)), encoding="utf-8")
                os.link(mine, path)  # appears with its content, or not at all
            except FileExistsError:
                if not path.exists() or not path.samefile(mine):
                    return None
                # it is ours: a network file system lost the first answer and tried again
            except FileNotFoundError:
                continue
            finally:
                mine.unlink(missing_ok=True)
            if any(other != path and _lives(other, me) for other in self._all(run_id)):
                path.unlink(missing_ok=True)  # another process took one in the meantime: it goes on
                return None
            return path
        raise OSError(f"{folder} disappears as soon as it is created: is another program cleaning {self.root}?")


def born(pid: int) -> str:
    """Start time of a process in kernel ticks, which tells it from a later one of the same number; "" if unknown."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/<pid>/stat` from the state on; empty where they can't be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def process_lives(pid: int) -> bool:
    """Whether a process of this number runs on this machine. A zombie does not count: it stays listed until its parent
    collects it, which the first process of some containers never does."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _stat(pid)[:1] not in (["Z"], ["X"])


@cache
def _boot() -> str:
    """Identifies the boot of this machine and the process namespace: containers on one machine share the boot, but a
    process number in one means nothing in another."""
    if sys.platform != "linux":
        return ""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _lives(path: Path, me: Owner | None = None) -> bool:
    """Whether the owner of a lease is alive; the earlier run of `me`, before its SLURM job was requeued, is not."""
    owner = _read(path)
    if owner is None:
        return False  # just released, or not a lease: those appear with their content
    if me is not None and owner.job and owner.job == me.job and owner.restart < me.restart:
        return False
    here = Owner.me()
    if (owner.host, owner.boot) == (here.host, here.boot):
        return process_lives(owner.pid) and born(owner.pid) == owner.born
    return _age(path) < DEAD


def _read(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _age(path: Path) -> float:
    """Seconds since a lease was renewed, by the clock of its file system."""
    probe = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with open(probe, "xb") as file:  # a process that releases its lease may remove it
            return os.fstat(file.fileno()).st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")  # just released
    finally:
        probe.unlink(missing_ok=True)


def _renew(path: Path, me: Owner, ended: threading.Event) -> None:
    """Renew the lease until `ended`; not one of the same number that another process took after ours counted as
    dead."""
    while not ended.wait(RENEWED):
        try:
            if _read(path) in (me, None):
                os.utime(path)
        except OSError:
            continue  # a network file system may fail for a moment; if it lasts, others take over


def _release(path: Path, me: Owner) -> None:
    """Remove the lease, the dead ones below it first, and the folder if no lease is left in it. A lease of the same
    number that belongs to another process stays: this process was suspended, counted as dead, and has lost its own."""
    if _read(path) not in (me, None):
        return
    try:
        for other in path.parent.iterdir():
            below = other.name.isdecimal() and int(other.name) < int(path.name)
            if not other.name.isdecimal() or (below and not _lives(other)):  # a process that is taking one starts over
                other.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # the process that took over has removed the folder
    try:
        path.parent.rmdir()
    except OSError:
        return  # it holds another process's lease
