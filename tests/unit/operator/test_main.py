"""The process of the operator."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from areal_operator.__main__ import leave_out_kubernetes
leave_out_kubernetes()
import areal_operator.app
import kopf
assert sys.modules["kubernetes"] is None
print(*sorted(sys.modules))
"""


def test_the_operator_does_not_load_another_client_of_kubernetes() -> None:
    loaded = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.split()
    assert "kopf" in loaded
    assert not {"requests", "oauthlib", "urllib3"} & set(loaded)  # which the package kubernetes imports
