"""One thread a process: xdist runs several side by side, and threads that wait for each other take far longer."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, and by workers that tests start
