"""Runs a pod's containers with plain Docker: commands, environment, mounts and restrictions from its manifest."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_api import resource_names
from areal_api.pods import PodSecurity
from areal_operator.manifests.base import Build
from areal_operator.manifests.pod import API_KEY_FILE, CONFIG_FILE

SECURITY = PodSecurity()


def docker(*arguments: str, timeout_s: float = 120.0) -> str:
    """Run docker and return its output; a failure shows its standard error."""
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_s)
    assert result.returncode == 0, f"docker {' '.join(arguments[:3])} …: {result.stderr.strip()[-2000:]}"
    return result.stdout.strip()


@dataclass(frozen=True)
class PodHost:
    """Runs an experiment's containers on a Docker network with a local folder as the run's volume."""

    build: Build
    network: str
    folder: Path

    def prepare(self) -> None:
        """Create the contents of the pods' volumes."""
        for name, text in ((CONFIG_FILE, self.build.config), (API_KEY_FILE, self.build.api_key)):
            path = self.folder / Path(name).relative_to("/etc/areal")
            path.parent.mkdir()
            path.write_text(text)
            path.chmod(0o644)
        (self.folder / "run").mkdir()
        (self.folder / "run").chmod(0o777)

    def start(self, container: dict[str, Any], image: str, *, host: str) -> str:
        """Start a container of a manifest under the host name ``host``; returns its ID."""
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        arguments = [
            "--read-only",
            "--user",
            f"{SECURITY.run_as_user}:{SECURITY.run_as_group}",
            "--security-opt",
            "no-new-privileges",
        ]
        arguments += [f"--cap-drop={name}" for name in security["capabilities"]["drop"]]
        arguments += ["--network", self.network, "--network-alias", host, "--workdir", container["workingDir"]]
        for entry in container["env"]:
            arguments += [
                "--env",
                f"{entry['name']}={entry.get('value', '0')}",
            ]  # entries without a value are pod indices: use 0
        for mount in container["volumeMounts"]:
            arguments += self._mounted(mount)
        program, *words = [
            word.replace("$$(", "$(").replace("$(AREAL_SERVER_INDEX)", "0") for word in container["command"]
        ]
        return docker("run", "--detach", "--entrypoint", program, *arguments, image, *words)

    def _mounted(self, mount: dict[str, Any]) -> list[str]:
        name, path = mount["name"], mount["mountPath"]
        match name:
            case "areal-tmp":
                return ["--tmpfs", f"{path}:exec,mode=1777"]
            case "areal-shm":
                return ["--shm-size", "1g"]
            case _:
                source = self.folder / name.removeprefix("areal-")
                return ["--volume", f"{source}:{path}{':ro' if mount.get('readOnly') else ''}"]

    def server_host(self) -> str:
        """The host name by which the trainer reaches the first server."""
        return resource_names.server_address(self.build.name, self.build.namespace, 0).rsplit(":", 1)[0]
