"""Arrays from .npz archives that nobody vouches for: no pickle, no bomb.

What an array takes is read in the zip's directory and in the array's own header, and the two have to agree, before
any of it is unpacked.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.dataset import Array
from datasets.limits import ARCHIVE_BYTES

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class _Refused(ValueError):
    """What is wrong with an archive, in our own words."""


def read_npz(
    path: Path, names: Sequence[str], optional: Sequence[str] = (), most: int = ARCHIVE_BYTES
) -> dict[str, Array]:
    """The arrays `names`, and those of `optional` that are there; at most `most` bytes together.

    Raises FileNotFoundError, and ValueError, which names the file and what is wrong with it, for an archive that is
    damaged, lacks an array, holds Python objects, or would take more when unpacked.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The file {path} was looked for and is not there, or is no file.")
    try:
        with zipfile.ZipFile(path) as archive:
            present = {info.filename: info for info in archive.infolist()}
            missing = [name for name in names if f"{name}.npy" not in present]
            if missing:
                raise _Refused(f"has no array '{missing[0]}'")
            wanted = [*names, *(name for name in optional if f"{name}.npy" in present)]
            members = {name: present[f"{name}.npy"] for name in wanted}
            size = sum(info.file_size for info in members.values())
            if size > most:
                raise _Refused(f"would take {size:,} bytes when unpacked, and at most {most:,} are read")
            return {name: _read(archive, info, name) for name, info in members.items()}
    except _Refused as refused:
        raise ValueError(f"The file {path} {refused}; fetch or make it anew.") from None
    except Exception as error:  # hostile bytes make zipfile, zlib and numpy raise nearly anything
        raise ValueError(f"The file {path} is damaged or no .npz archive; fetch or make it anew.") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Array:
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise _Refused(f"holds '{name}' in an unknown version of numpy's format")
        shape, _, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise _Refused(f"holds pickled Python objects in '{name}', which are never loaded")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - stream.tell():
            raise _Refused(f"does not hold as much of '{name}' as its header says")
    with archive.open(info) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
