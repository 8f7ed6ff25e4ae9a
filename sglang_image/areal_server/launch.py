"""Start an SGLang server in this process, from a run's configuration.

    python -m areal_server.launch --config config.yaml --device cpu --host 127.0.0.1 --port 30000

reads ``config.sglang``, checks every argument against SGLang's own ServerArgs, and becomes the server: signals that
this process gets are SGLang's. Without a GPU it sets up SGLang's CPU engine (``areal_server.cpu``).
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from areal_api import logs, names
from areal_api.config import GRPOConfig
from areal_server.arguments import Device, Flag, server_arguments, server_environment

logger = logging.getLogger(__name__)

LOGGING_FILE = "SGLANG_LOGGING_CONFIG_PATH"  # where SGLang finds how its processes log
# From the end of the last request that was begun before SIGTERM: for those that came too late for SGLang to answer.
LAST_ANSWERS_S = 5
JSON_LOGGING = Path(__file__).with_name("json_logging.json")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse prints SGLang's usage of 400 lines and exits."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"SGLang refuses {message}")


def sglang_parser() -> argparse.ArgumentParser:
    """This SGLang's own command line; parse_args raises ValueError for a value that it does not take."""
    from sglang.srt.server_args import ServerArgs

    parser = _Parser(prog="sglang")
    ServerArgs.add_cli_args(parser)
    return parser


def sglang_flags(parser: argparse.ArgumentParser) -> dict[str, Flag]:
    """The fields of ServerArgs that the command line takes."""
    flags: dict[str, Flag] = {}
    for action in parser._actions:  # argparse has no public way to ask for them
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


def check_machine(device: Device, tensor_parallel: int, host: str, port: int) -> None:
    """Raise ValueError where the server cannot run here: no GPU, too few, port taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"--port {port}: cannot listen on {host}:{port}: {error.strerror}") from error
    if device == "cpu":
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < tensor_parallel:
        raise ValueError(
            f"servers.device: 'cuda' with servers.tensorParallel: {tensor_parallel} needs as many GPUs, this machine "
            f"shows {found}; set servers.device: cpu to serve on the CPU, or check the driver and CUDA_VISIBLE_DEVICES"
        )


def check_model(path: str) -> None:
    """Raise ValueError for a local path without a model; SGLang takes a minute to say so. Names of the hub pass."""
    local = Path(path)
    if local.is_dir() and not (local / "config.json").is_file():
        raise ValueError(f"model path {path}: there is no config.json in it; it must be a Hugging Face checkpoint")
    if not local.exists() and (local.is_absolute() or path.startswith(".") or len(local.parts) > 2):
        raise ValueError(f"model path {path}: no such directory; set actor.path (or sglang.model_path) to a model")


def read_key(path: str | None) -> str | None:
    """The API key in a file; None without a file. Raises ValueError for an empty one."""
    if path is None:
        return None
    key = Path(path).read_text().strip()
    if not key:
        raise ValueError(f"--api-key-file {path}: the file is empty; a server without a key is one without this option")
    return key


def _keep_out_of_logs(secret: str) -> None:
    """Replace `secret` in every log line of this process, however logging is set up later on."""
    make = logging.getLogRecordFactory()

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        message = record.getMessage()
        if secret in message:
            record.msg, record.args = message.replace(secret, "***"), ()
        return record

    logging.setLogRecordFactory(redacted)


def _write_json_lines() -> None:
    """Have uvicorn write JSON too, whose loggers have handlers of their own, and warnings; SGLang is told by a file."""
    from uvicorn.config import LOGGING_CONFIG

    logging.captureWarnings(True)
    for name in ("default", "access"):  # SGLang sets a format on them, which ours ignores
        LOGGING_CONFIG["formatters"][name] = {"()": "areal_api.logs.JsonFormatter"}


def _leave_unanswerable_requests() -> None:
    """Bound the end of the HTTP server, to which SGLang gives no limit.

    Told to end, SGLang answers what it has begun and stops its engine; a request that comes while it does that waits
    for the engine for ever, and the server with it.
    """
    import uvicorn

    bounded: Any = functools.partialmethod(uvicorn.Config.__init__, timeout_graceful_shutdown=LAST_ANSWERS_S)
    uvicorn.Config.__init__ = bounded  # type: ignore[method-assign]


def _prepare_sglang() -> argparse.ArgumentParser:
    from sglang.srt.plugins import load_plugins

    load_plugins()  # they add to what the command line takes
    return sglang_parser()


def serve(argv: list[str], api_key: str | None) -> None:
    """Run SGLang in this process until it is told to end."""
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    server_args: Any = prepare_server_args(argv)
    if logs.wants_json(os.environ):
        _write_json_lines()
    if api_key is not None:
        # In memory only: arguments can be read by everybody who may list processes, and SGLang logs all of them.
        server_args.api_key = api_key
        _keep_out_of_logs(api_key)
    _leave_unanswerable_requests()
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; a mistake ends the process with a usage line."""
    parser = argparse.ArgumentParser(prog="python -m areal_server.launch", description=__doc__)
    parser.add_argument("--config", required=True, help="the run's resolved config.yaml")
    parser.add_argument("--device", required=True, choices=["cuda", "cpu"], help="what the server computes on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    parser.add_argument("--index", type=int, default=0, help="number of this server; added to the run's seed")
    parser.add_argument("--model-path", help="model to load; default config.sglang.model_path, then config.actor.path")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs (or CPU processes) of this server")
    parser.add_argument("--args", type=json.loads, default={}, help="more fields of SGLang's ServerArgs, a JSON object")
    parser.add_argument(
        "--api-key-file", default=os.environ.get(names.API_KEY_FILE), help=f"default {names.API_KEY_FILE}"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        config = GRPOConfig.model_validate(yaml.safe_load(Path(options.config).read_text()))
        api_key = read_key(options.api_key_file)
        check_machine(options.device, options.tensor_parallel, options.host, options.port)
        model_path = options.model_path or config.sglang.model_path or config.actor.path
        check_model(model_path)
        environment = server_environment(
            options.device,
            os.environ,
            tensor_parallel=options.tensor_parallel,
            cores=sorted(os.sched_getaffinity(0)),
        )
        if logs.wants_json(os.environ) and LOGGING_FILE not in os.environ:
            environment[LOGGING_FILE] = str(JSON_LOGGING)
        if Path(model_path).is_dir() and "HF_HUB_OFFLINE" not in os.environ:
            environment["HF_HUB_OFFLINE"] = "1"  # nothing to ask the hub for
        if environment:
            # Some of it is read when a process begins: begin again with it, as the same process.
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment})
        parser = _prepare_sglang()
        arguments = server_arguments(
            config.sglang,
            options.args,
            device=options.device,
            model_path=model_path,
            tokenizer_path=config.tokenizer_path,
            tensor_parallel=options.tensor_parallel,
            host=options.host,
            port=options.port,
            random_seed=config.seed + options.index,
            flags=sglang_flags(parser),
        )
        parser.parse_args(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"areal_server.launch: {error}")
    logger.info("starting sglang %s", " ".join(arguments))
    serve(arguments, api_key)


if __name__ == "__main__":
    main()
