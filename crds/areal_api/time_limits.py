"""Time limits in dealing with servers: ``rollout``'s keys, with the default of the device where a key is null.

A limit has one meaning and one key: ``servers.startupSeconds`` bounds the start of a server, the limits here the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from areal_api.config import RolloutConfig

# A first start on GPUs pulls images of 10 GB and more, downloads the model, compiles kernels and captures CUDA graphs.
SETUP_S = {"cuda": 7200.0, "cpu": 300.0}
# A 32B model has 65 GB of weights: 1800 s suffice at 36 MB/s per server.
WEIGHT_LOAD_S = {"cuda": 1800.0, "cpu": 300.0}
HEALTH_PERIOD_S = 30  # between two health checks of a server
HEALTH_TIMEOUT_S = 25  # of a check: SGLang answers that it is not healthy after 20 s


@dataclass(frozen=True)
class TimeLimits:
    """Resolved time limits, in seconds."""

    setup_s: float  # waiting for a ready server
    weight_load_s: float  # of a server that loads weights
    broadcast_s: float  # joining a broadcast group, and each bucket

    @classmethod
    def of(cls, rollout: RolloutConfig, device: Literal["cuda", "cpu"]) -> TimeLimits:
        """The limits of a configuration on ``device``."""
        return cls(
            setup_s=SETUP_S[device] if rollout.setup_timeout is None else rollout.setup_timeout,
            weight_load_s=WEIGHT_LOAD_S[device] if rollout.weight_load_timeout is None else rollout.weight_load_timeout,
            broadcast_s=rollout.broadcast_timeout,
        )

    @property
    def unhealthy_s(self) -> float:
        """How long a server that was ready may fail its health checks before it is restarted.

        /health waits for the scheduler, which answers nothing while it loads weights or takes part in a broadcast.
        """
        return max(self.weight_load_s, self.broadcast_s)

    @property
    def health_failures(self) -> int:
        """Consecutive failed checks after which a server is restarted, at one check every ``HEALTH_PERIOD_S``."""
        return max(1, math.ceil(self.unhealthy_s / HEALTH_PERIOD_S))
