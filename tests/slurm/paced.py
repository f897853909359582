"""A plug-in: dense training that waits for PACE seconds in every step. Runs last as long as a test wants them to, and
leave the machine to others; their weights do not depend on it."""

from __future__ import annotations

import os
import time
from typing import Any

from torch import Tensor

from methods import Entry
from methods.strategies.strategy import Call, Encoding, Strategy


class Paced(Strategy):
    def forward(self, network: Any, images: Tensor, call: Call) -> Encoding:
        if call.training:
            time.sleep(float(os.environ.get("PACE", "0")))
        return super().forward(network, images, call)


STRATEGIES = {"paced": Entry(":Paced", "dense, slowed down", "for tests")}
