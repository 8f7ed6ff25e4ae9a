"""A pod's containers run by Docker alone: commands, variables, mounts and restrictions of the operator's manifests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_api import resource_names
from areal_operator.manifests.base import Build
from areal_operator.manifests.pod import API_KEY_FILE, CONFIG_FILE, USER


def docker(*arguments: str, timeout_s: float = 120.0) -> str:
    """What a docker command prints; a failure shows what it wrote to standard error."""
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_s)
    assert result.returncode == 0, f"docker {' '.join(arguments[:3])} …: {result.stderr.strip()[-2000:]}"
    return result.stdout.strip()


@dataclass(frozen=True)
class PodHost:
    """Runs containers of one experiment on a Docker network, with a folder in place of the run's volume."""

    build: Build
    network: str
    folder: Path

    def prepare(self) -> None:
        """Make what the pods' volumes hold."""
        for name, text in ((CONFIG_FILE, self.build.config), (API_KEY_FILE, self.build.api_key)):
            path = self.folder / Path(name).relative_to("/etc/areal")
            path.parent.mkdir()
            path.write_text(text)
            path.chmod(0o644)
        (self.folder / "run").mkdir()
        (self.folder / "run").chmod(0o777)

    def start(self, container: dict[str, Any], image: str, *, host: str) -> str:
        """Start a container of a manifest, known to the others as ``host``; its identity."""
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        arguments = ["--read-only", "--user", f"{USER}:{USER}", "--security-opt", "no-new-privileges"]
        arguments += [f"--cap-drop={name}" for name in security["capabilities"]["drop"]]
        arguments += ["--network", self.network, "--network-alias", host, "--workdir", container["workingDir"]]
        for entry in container["env"]:
            arguments += [
                "--env",
                f"{entry['name']}={entry.get('value', '0')}",
            ]  # the rest are numbers of pods: the first
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
        """The name under which the trainer looks for the first server."""
        return resource_names.server_address(self.build.name, self.build.namespace, 0).rsplit(":", 1)[0]
