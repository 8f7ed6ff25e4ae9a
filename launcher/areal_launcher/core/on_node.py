"""Starts one process on its node: chooses its port there and publishes it. Run by path; standard library only.

``on_node.py SPEC`` reads a JSON object: ``argv``, ``env`` (additions), ``host``, ``port`` (preferred, 0 for any free
one, null if the process needs none), ``address_file``, ``gpus`` (indices into the visible GPUs, null to leave them).
It reserves a port, writes ``host:port`` to ``address_file``, and runs the command below ``supervisor``, which stands
beside this file. Standard input is the supervisor's.
"""

from __future__ import annotations

import json
import os
import socket
import sys

HOST, PORT = "@host@", "@port@"


def reserve(host: str, preferred: int) -> socket.socket:
    """A socket bound to ``preferred`` if it is free, else to any port. The command may bind it too (SO_REUSEADDR)."""
    for port in dict.fromkeys((preferred, 0)):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            if port == 0:
                raise SystemExit(f"cannot listen on {host}: {error.strerror}") from error
            continue
        return sock
    raise AssertionError("port 0 was tried")


def publish(path: str, text: str) -> None:
    """Replace a file atomically and durably, for readers on other nodes."""
    partial = f"{path}.{socket.gethostname()}.{os.getpid()}"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def visible(gpus: list[int]) -> str:
    """CUDA_VISIBLE_DEVICES for the GPUs with these indices among those of this step."""
    ids = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if gpus and max(gpus) >= len(ids):
        raise SystemExit(
            f"this node gives the job {len(ids)} GPUs (CUDA_VISIBLE_DEVICES={','.join(ids)}), not {max(gpus) + 1}"
        )
    return ",".join(ids[index] for index in gpus)


def main(path: str) -> int:
    """Run the process; its exit status."""
    with open(path, encoding="utf-8") as file:
        spec = json.load(file)
    argv, env, host = spec["argv"], spec["env"], spec["host"]
    held = None
    if spec["port"] is not None:
        held = reserve(host, spec["port"])
        port = str(held.getsockname()[1])
        argv = [{HOST: host, PORT: port}.get(word, word) for word in argv]
        publish(spec["address_file"], f"{host}:{port}")
    if spec["gpus"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(spec["gpus"])
    os.environ.update(env)
    import supervisor  # type: ignore[import-not-found]  # beside this file

    try:
        return int(supervisor.main(argv, forward_signals="SLURM_STEP_ID" not in os.environ))
    finally:
        if held is not None:
            held.close()


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    sys.exit(main(sys.argv[1]))
