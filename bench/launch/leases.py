"""Who is at work on which run: claims, files made exclusively, so that workers share a grid without a master.

The claims on a run are `results/.leases/<run id>/<number>`, each holding its owner; the highest counts. A claim is made
by linking a finished file to the next number, which can succeed for one process only. A dead owner's claim is never
removed to take its place (two who see it dead would remove each other's): the next number is.

An owner on this machine is alive while its process is (number and time of birth). For one elsewhere, also in another
container, the claim's time of last change tells, which its owner renews every half minute: it counts as dead after
five, both read off the clock of the file system that they share. A SLURM job that was requeued takes over what it held
before at once.

Where this could fail: a process that is frozen for over five minutes and thawed, or a network file system that hides
new files for as long, lets two processes do the same run. Either of them does it right, but what they write is not the
same to the last byte (a history holds speeds, a record times). So whoever finishes it first has done it: the other, on
coming to write, finds a record that is done and leaves it with all that lies beside it (`bench.experiment`), and gives
back no claim but its own. Only time is lost. The file system must have hard links.
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

RENEWED = 30.0  # seconds between renewals of a claim
DEAD = 300.0  # seconds without one after which an owner elsewhere counts as dead


@dataclass(frozen=True)
class Owner:
    """A process that holds a claim. `job` is its SLURM job, `restart` how often that was requeued; `command_id` the command
    on whose behalf it works."""

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
    """The claims in a results folder."""

    def __init__(self, results: Path) -> None:
        self.root = results / ".leases"

    @contextmanager
    def hold(self, run_id: str, command_id: str = "") -> Iterator[bool]:
        """True inside if the run is this process's to do; given back at the end."""
        me = Owner.me(command_id)
        path = self._make(run_id, me)
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
            _give_back(path, me)

    def held(self, run_id: str) -> bool:
        """Is a living process at work on the run?"""
        return any(_lives(path) for path in self._all(run_id))

    def dead(self, run_id: str) -> list[Owner]:
        """Who held the run and died with it, the last one last."""
        return [owner for path in self._all(run_id) if not _lives(path) and (owner := _read(path)) is not None]

    def _all(self, run_id: str) -> list[Path]:
        try:
            paths = [path for path in (self.root / run_id).iterdir() if path.name.isdecimal()]
        except FileNotFoundError:  # nobody has one, or the last is being given back at this moment
            return []
        return sorted(paths, key=lambda path: int(path.name))

    def _make(self, run_id: str, me: Owner) -> Path | None:
        """This process's claim, or None where another's stands or came first."""
        folder = self.root / run_id
        for _ in range(10):  # the folder goes with its last claim, perhaps just before ours
            folder.mkdir(parents=True, exist_ok=True)
            found = self._all(run_id)
            if any(_lives(path, me) for path in found):
                return None
            path = folder / str(int(found[-1].name) + 1 if found else 1)
            mine = folder / f".{uuid.uuid4().hex}"
            try:
                mine.write_text(json.dumps(asdict(me)), encoding="utf-8")
                os.link(mine, path)  # there with its content, or not at all
            except FileExistsError:
                if not path.exists() or not path.samefile(mine):
                    return None
                # ours: a network file system lost its first answer, and asked again
            except FileNotFoundError:
                continue
            finally:
                mine.unlink(missing_ok=True)
            if any(other != path and _lives(other, me) for other in self._all(run_id)):
                path.unlink(missing_ok=True)  # made meanwhile, after the old ones were given back: its owner goes on
                return None
            return path
        raise OSError(f"{folder} disappears as soon as it is made: is another program cleaning {self.root}?")


def born(pid: int) -> str:
    """When a process began, in the kernel's own count: tells it from a later one of the same number. "" if unknown."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; nothing where it says nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def process_lives(pid: int) -> bool:
    """Is there a process of this number on this machine? One that has ended is none, though nobody asked how: where a
    container's first process does not, it stays listed."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _stat(pid)[:1] not in (["Z"], ["X"])


@cache
def _boot() -> str:
    """Which start of which machine this is, and whose processes are counted: containers of one machine share the start
    alone, and a number there says nothing here."""
    if sys.platform != "linux":
        return ""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _lives(path: Path, me: Owner | None = None) -> bool:
    """Does the owner of a claim live? `me`: my own earlier self, before its job was requeued, does not."""
    owner = _read(path)
    if owner is None:
        return False  # given back just now, or no claim of ours: those come with their content
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
    """Seconds since a claim was renewed, by the clock of its file system."""
    probe = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with open(probe, "xb") as file:  # may be removed under our hands, by who gives a claim back
            return os.fstat(file.fileno()).st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")  # given back just now
    finally:
        probe.unlink(missing_ok=True)


def _renew(path: Path, me: Owner, ended: threading.Event) -> None:
    """Until it ends. Not a claim of the same number that another made, after ours was taken for dead and removed."""
    while not ended.wait(RENEWED):
        try:
            if _read(path) in (me, None):
                os.utime(path)
        except OSError:
            continue  # a network file system's hiccup; if it lasts, others take over


def _give_back(path: Path, me: Owner) -> None:
    """Remove the claim, the dead ones below it first, and the folder if nobody else has a claim in it. Not a claim of
    the same number that is another's: this process was frozen and taken for dead, and ours is gone."""
    if _read(path) not in (me, None):
        return
    try:
        for other in path.parent.iterdir():
            below = other.name.isdecimal() and int(other.name) < int(path.name)
            if not other.name.isdecimal() or (below and not _lives(other)):  # whoever makes a claim now makes it again
                other.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # the folder went with the claim of who took over
    try:
        path.parent.rmdir()
    except OSError:
        return  # another's claim is in it
