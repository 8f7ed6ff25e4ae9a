"""Control planes for tests, with the operator's user."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from areal_api.generate.crd import FILE
from hack.cluster.control_plane import BuildError, ControlPlane, binaries
from hack.testbed.operator_process import NAMESPACE, USER, grant


@contextmanager
def bare_plane(
    folder: Path,
    user: str = USER,
    *,
    ipv6: bool = False,
    audited: bool = False,
    gangs: bool = False,
    admins: Sequence[str] = (),
) -> Iterator[ControlPlane]:
    """A control plane without any of our objects; if none can be built, the test is skipped with the reason."""
    try:
        bin_dir = binaries()
    except (BuildError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no Kubernetes to test against: {error}")
    plane = ControlPlane(folder, bin_dir, ipv6=ipv6, audited=audited, gangs=gangs)
    plane.add_user(user)
    for admin in admins:
        plane.add_user(admin, admin=True)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def prepare(plane: ControlPlane, folder: Path) -> None:
    """Install the resource definition and the operator's permissions."""
    try:
        plane.define(FILE)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"the API server refuses {FILE.name}: {error.stderr[:3000]}") from error
    plane.kubectl("create", "namespace", NAMESPACE)
    rights = folder / "rights.yaml"
    rights.write_text(yaml.safe_dump_all(grant()))
    plane.kubectl("apply", "-f", str(rights))
