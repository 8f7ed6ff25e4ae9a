"""Start an SGLang server in this process from a run's configuration.

    python -m areal_server.launch --config config.yaml --device cpu --host 127.0.0.1 --port 30000

reads ``config.sglang``, validates every argument against SGLang's ServerArgs and runs the server in this process, so
signals reach SGLang. On a CPU it sets up SGLang's CPU engine (``areal_server.cpu``).
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Literal, NoReturn

from areal_api import logs, names
from areal_api.config import GRPOConfig
from areal_api.cuda_toolkit import toolkit_environment
from areal_api.load import read_resolved_config
from areal_api.paths import expand_home, is_local_path
from areal_server.arguments import Device, Flag, server_arguments, server_environment
from areal_server.download_weights import FOLDER, DownloadedWeights
from areal_server.node_group import Member, NodeGroup

logger = logging.getLogger(__name__)

LOGGING_FILE = "SGLANG_LOGGING_CONFIG_PATH"  # SGLang's variable for its logging configuration
# Grace period after the last pre-SIGTERM request ends, for requests that arrived too late for SGLang to answer.
SHUTDOWN_GRACE_S = 5
EXIT_DELAY_S = 0.2  # for the response to the request to exit
EXIT_ON_REQUEST = 75
EXIT_NODE_LOST = 76
JSON_LOGGING = Path(__file__).with_name("json_logging.json")


class _Parser(argparse.ArgumentParser):
    """Raises a one-line error instead of printing SGLang's 400-line usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"SGLang rejects {message}")


def sglang_parser() -> argparse.ArgumentParser:
    """The command-line parser of the installed SGLang; parse_args raises ValueError for an invalid value."""
    from sglang.srt.server_args import ServerArgs

    parser = _Parser(prog="sglang")
    ServerArgs.add_cli_args(parser)
    return parser


def sglang_flags(parser: argparse.ArgumentParser) -> dict[str, Flag]:
    """The fields of ServerArgs that have a command-line option."""
    flags: dict[str, Flag] = {}
    for action in parser._actions:  # argparse has no public API for this
        kind: Literal["switch", "either", "value", "list"] = "value"
        if isinstance(action, argparse.BooleanOptionalAction):
            kind = "either"
        elif action.nargs == 0:
            kind = "switch"
        elif action.nargs in ("+", "*"):
            kind = "list"
        if action.dest not in ("help", "config"):
            flags.setdefault(action.dest, Flag(action.option_strings[0], kind, action.default))
    return flags


def listening_host(host: str, pod_ip: str | None) -> str:
    """``host``; if that is every IPv4 address and the pod's address is IPv6, then every IPv6 address."""
    return "::" if host == "0.0.0.0" and pod_ip is not None and ":" in pod_ip else host


def check_machine(device: Device, tensor_parallel: int, host: str, port: int) -> None:
    """Raise ValueError if the server cannot run on this machine: too few GPUs, or the port is in use."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"--port {port}: cannot listen on {host}:{port}: {error.strerror}") from error
    if device == "cpu":
        return
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available < tensor_parallel:
        raise ValueError(
            f"servers.device: 'cuda' with servers.tensorParallel: {tensor_parallel} needs as many GPUs, but this "
            f"machine has {available}; set servers.device: cpu, or check the driver and CUDA_VISIBLE_DEVICES"
        )


def check_model(path: str) -> None:
    """Raise ValueError for a local path without a model, which SGLang would report after a minute. Hub names pass."""
    local = Path(path)
    if local.is_dir() and not (local / "config.json").is_file():
        raise ValueError(f"model path {path}: it has no config.json; it must be a Hugging Face checkpoint")
    if not local.exists() and is_local_path(path):
        raise ValueError(f"model path {path}: no such directory; set actor.path (or sglang.model_path) to a model")


def read_key(path: str | None) -> str | None:
    """Read the API key; None without a file. Raises ValueError if the file is empty."""
    if path is None:
        return None
    key = Path(path).read_text().strip()
    if not key:
        raise ValueError(f"--api-key-file {path}: the file is empty; omit the option to serve without a key")
    return key


def _redact_from_logs(secret: str) -> None:
    """Replace `secret` in every log line of this process, however logging is configured later."""
    make = logging.getLogRecordFactory()

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        message = record.getMessage()
        if secret in message:
            record.msg, record.args = message.replace(secret, "***"), ()
        return record

    logging.setLogRecordFactory(redacted)


def _use_json_logging() -> None:
    """Log warnings and uvicorn's lines as JSON. SGLang's own logging is configured by a file."""
    from uvicorn.config import LOGGING_CONFIG

    logging.captureWarnings(True)
    for name in ("default", "access"):  # SGLang sets a format on them, which our formatter ignores
        LOGGING_CONFIG["formatters"][name] = {"()": "areal_api.logs.JsonFormatter"}


def _limit_graceful_shutdown() -> None:
    """Set a time limit for the HTTP server's shutdown; SGLang sets none.

    On SIGTERM SGLang completes its running requests and stops its engine. A request that arrives meanwhile waits for
    the engine for ever, and so does the server.
    """
    import uvicorn

    bounded: Any = functools.partialmethod(uvicorn.Config.__init__, timeout_graceful_shutdown=SHUTDOWN_GRACE_S)
    uvicorn.Config.__init__ = bounded  # type: ignore[method-assign]


def _add_exit_route() -> None:
    """POST ``names.SERVER_EXIT_PATH`` ends this process and SGLang's, so that it is restarted.

    The trainer uses it for a server whose scheduler waits in a collective for a lost member: nothing else ends that
    before the group's timeout of 30 minutes. SGLang's check of the API key applies to it.
    """
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils import kill_process_tree

    async def exit_now() -> dict[str, str]:
        def end() -> None:
            kill_process_tree(os.getpid(), include_parent=False)
            os._exit(EXIT_ON_REQUEST)  # SIGKILL has no effect on process 1 of a container

        threading.Timer(EXIT_DELAY_S, end).start()
        return {"status": "exiting"}

    app.add_api_route(names.SERVER_EXIT_PATH, exit_now, methods=["POST"])


def _add_weights_route(api_key: str | None) -> None:
    """POST ``names.SERVER_WEIGHTS_PATH``: see ``download_weights``."""
    from fastapi import HTTPException
    from sglang.srt.entrypoints.http_server import app

    weights = DownloadedWeights(FOLDER, api_key=api_key)

    async def download(request: dict[str, Any]) -> dict[str, str]:
        try:
            return {"path": str(await asyncio.to_thread(weights.fetch, request))}
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        except OSError as error:
            raise HTTPException(503, f"the weights cannot be downloaded: {error}") from error

    app.add_api_route(names.SERVER_WEIGHTS_PATH, download, methods=["POST"])


def _prepare_sglang() -> argparse.ArgumentParser:
    from sglang.srt.plugins import load_plugins

    load_plugins()  # they add command-line options
    return sglang_parser()


def _join_nodes(member: Member, host: str, api_key: str | None) -> None:
    """Connect this node of a server with its others, and answer probes on the nodes without SGLang's HTTP server."""
    from sglang.srt.entrypoints import engine
    from sglang.srt.utils import kill_process_tree

    def lost(reason: str) -> None:
        kill_process_tree(os.getpid(), include_parent=False)
        # The last line becomes the message of the container's end, which the status of the experiment shows.
        logger.error("the server ends on all of its nodes, to be started again: %s", reason)
        os._exit(EXIT_NODE_LOST)

    group = NodeGroup(
        member, host=host, key=api_key or "", lost=lost, drain=lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    group.start()

    def answer_probes(host: str, port: int, enable_metrics: bool) -> None:
        signal.signal(signal.SIGTERM, lambda *_: group.request_drain())  # SGLang would wait for a kill
        _serve_probes(host, port)

    engine.launch_dummy_health_check_server = answer_probes


def _serve_probes(host: str, port: int) -> None:
    """Answer /ready and /health in the background, once the ranks of this node are ready."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def ok(_: Request) -> Response:
        return Response()

    app = Starlette(routes=[Route(path, ok) for path in ("/ready", "/health")])
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_config=None))
    threading.Thread(target=server.run, name="probes", daemon=True).start()


def serve(argv: list[str], api_key: str | None, member: Member | None) -> None:
    """Run SGLang in this process until it is terminated."""
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    server_args: Any = prepare_server_args(argv)
    if logs.is_json(os.environ):
        _use_json_logging()
    if api_key is not None:
        # In memory only: any user who can list processes can read arguments, and SGLang logs all of them.
        server_args.api_key = api_key
        _redact_from_logs(api_key)
    _limit_graceful_shutdown()
    _add_exit_route()
    _add_weights_route(api_key)
    if member is not None:
        _join_nodes(member, server_args.host, api_key)
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the options. Exits with a usage line on errors."""
    parser = argparse.ArgumentParser(prog="python -m areal_server.launch", description=__doc__)
    parser.add_argument("--config", required=True, help="the run's resolved config.yaml")
    parser.add_argument("--device", required=True, choices=["cuda", "cpu"], help="device to run on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    parser.add_argument("--index", type=int, default=0, help="index of this server, which is added to the run's seed")
    parser.add_argument("--seed-offset", type=int, default=0, help="number that is added to the run's seed as well")
    parser.add_argument("--model-path", help="model to load; default config.sglang.model_path, then config.actor.path")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs (or CPU processes) of this server")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of each server; --index then counts nodes")
    parser.add_argument("--leaders", default="", help="host of the node whose index replaces {}")
    parser.add_argument("--group-port", type=int, default=0, help="port of a server's first node for its others")
    parser.add_argument(
        "--args", type=json.loads, default={}, help="more fields of SGLang's ServerArgs, as a JSON object"
    )
    parser.add_argument(
        "--api-key-file", default=os.environ.get(names.API_KEY_FILE), help=f"default {names.API_KEY_FILE}"
    )
    return parser.parse_args(argv)


def member_of(options: argparse.Namespace) -> Member | None:
    """This node's place in a server on several nodes; None for a server on one."""
    if options.nodes == 1:
        return None
    first = options.index - options.index % options.nodes
    return Member(options.nodes, options.index % options.nodes, options.leaders.format(first), options.group_port)


def seed_of(options: argparse.Namespace, run_seed: int) -> int:
    """The seed of this server: no other server of the run has it, and all nodes of a server have the same."""
    return int(run_seed + options.seed_offset + options.index // options.nodes)


def main(argv: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        config = read_resolved_config(options.config, GRPOConfig)
        api_key = read_key(options.api_key_file)
        host = listening_host(options.host, os.environ.get(names.POD_IP))
        member = member_of(options)
        check_machine(options.device, options.tensor_parallel // options.nodes, host, options.port)
        model_path = expand_home(options.model_path or config.sglang.model_path or config.actor.path)
        check_model(model_path)
        environment = server_environment(
            options.device,
            os.environ,
            tensor_parallel=options.tensor_parallel,
            nodes=options.nodes,
            cores=sorted(os.sched_getaffinity(0)),
            host=options.host,
        )
        if options.device == "cuda":
            environment |= toolkit_environment(os.environ)
        if logs.is_json(os.environ) and LOGGING_FILE not in os.environ:
            environment[LOGGING_FILE] = str(JSON_LOGGING)
        if Path(model_path).is_dir() and "HF_HUB_OFFLINE" not in os.environ:
            environment["HF_HUB_OFFLINE"] = "1"  # the model is local
        if environment:
            # Some variables are only read at process start, so exec this program again.
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment})
        parser = _prepare_sglang()
        arguments = server_arguments(
            config.sglang,
            options.args,
            device=options.device,
            model_path=model_path,
            tokenizer_path=config.tokenizer_path,
            tensor_parallel=options.tensor_parallel,
            host=host,
            port=options.port,
            random_seed=seed_of(options, config.seed),
            flags=sglang_flags(parser),
            member=member,
            reports_experts=config.actor.router_replay,
        )
        parser.parse_args(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"areal_server.launch: {error}")
    logger.info("starting sglang %s", " ".join(arguments))
    serve(arguments, api_key, member)


if __name__ == "__main__":
    main()
