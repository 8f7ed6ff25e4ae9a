"""The ``grpo`` command: train, evaluate, inspect and convert."""

from __future__ import annotations

import argparse
import errno
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from areal_api import logs
from areal_api.paths import expand_home
from areal_launcher import commands, completion
from areal_launcher.cli_help import (
    CHECK,
    COMPARE,
    COMPLETION,
    CONVERT,
    EVAL,
    LIST,
    LOGS,
    RESUME,
    RUN,
    RUN_DIR,
    SCALE,
    STATUS,
    STOP,
    SUSPEND,
    TRACE,
    UI,
)
from areal_launcher.cli_ui import add_compare, add_roots, add_ui, list_action
from areal_launcher.console import console_for, discard_output, prepare_standard_streams
from areal_launcher.errors import RunError
from areal_launcher.place_commands import PlaceCommands, listed, places, refuse_other_options
from areal_launcher.request import Request
from areal_launcher.terminal_text import printable, printable_line

USAGE_ERROR = 2
INTERRUPTED = 130


def run_parser() -> argparse.ArgumentParser:
    """``grpo run``."""
    parser = command_parser("run", RUN)
    add_experiment(parser, "SCRIPT.py, EXPERIMENT.yaml and key=value, in any order")
    add_place(parser, "run", "where to run")
    parser.add_argument("--detach", action="store_true", help="submit to the cluster without following the run")
    parser.add_argument("--force", action="store_true", help="run an experiment that grpo check says does not fit")
    add_port(parser)
    parser.set_defaults(action=lambda args: place_of(args).run(args))
    return parser


def check_parser() -> argparse.ArgumentParser:
    """``grpo check``."""
    parser = command_parser("check", CHECK)
    add_experiment(parser, "EXPERIMENT.yaml and key=value, in any order")
    parser.add_argument(
        "--gpu", metavar="NAME", help="GPU to compare with, for example H100-80GB (default: found here)"
    )
    parser.add_argument("--nodes", metavar="GPUS", help="free GPUs of each node: 8,8 or 2x8 (default: not checked)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--print-config", action="store_true", help="print the resolved experiment first")
    add_place(parser, "check", "where the run would execute")
    parser.set_defaults(action=check_action)
    return parser


def check_action(args: argparse.Namespace) -> int:
    """Check whether an experiment fits."""
    place = place_of(args)
    refuse_other_options(args, place, check=True)
    return place.check(args)


def eval_parser() -> argparse.ArgumentParser:
    """``grpo eval``."""
    parser = command_parser("eval", EVAL)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint, run directory or hub name")
    add_experiment(parser, "EXPERIMENT.yaml and key=value, in any order")
    add_local_only(parser)
    add_port(parser)
    help_text = "problems in place of valid_dataset: aime24, aime25, gsm8k or math500, from the hub or from FILE"
    parser.add_argument("--benchmark", metavar="NAME[=FILE]", help=help_text)
    parser.set_defaults(action=eval_action)
    return parser


def eval_action(args: argparse.Namespace) -> int:
    """Evaluate locally."""
    if args.on != "local":
        raise ValueError(
            "grpo eval runs only on this machine; in a cluster the run itself evaluates: "
            "set config.valid_dataset and config.evaluator.freq_steps"
        )
    from areal_launcher.benchmark_sets import ChosenBenchmark
    from areal_launcher.places.local.evaluate import evaluate

    benchmark = None if args.benchmark is None else ChosenBenchmark.parse(args.benchmark)
    return evaluate(args.checkpoint, Request.parse(args.items, args.config), args.port, benchmark)


def compare_parser() -> argparse.ArgumentParser:
    """``grpo compare``."""
    parser = command_parser("compare", COMPARE)
    add_compare(parser, path)
    return parser


def convert_parser() -> argparse.ArgumentParser:
    """``grpo convert``."""
    parser = command_parser("convert", CONVERT)
    add_experiment(parser, "gsm8k_grpo.yaml and key=value")
    parser.add_argument("-o", "--output", type=path, metavar="FILE", help="file to write (default: standard output)")
    parser.set_defaults(action=lambda args: commands.convert(Request.parse(args.items, args.config), args.output))
    return parser


def trace_parser() -> argparse.ArgumentParser:
    """``grpo trace``."""
    parser = command_parser("trace", TRACE)
    add_run_dir(parser)
    parser.add_argument("-o", "--output", type=path, metavar="FILE", help="file to write (default: RUN_DIR/trace.json)")
    parser.set_defaults(action=trace_action)
    return parser


def trace_action(args: argparse.Namespace) -> int:
    """Convert spans."""
    from areal_launcher.trace import trace

    return trace(args.run_dir, args.output)


def plot_parser() -> argparse.ArgumentParser:
    """``grpo plot``."""
    parser = command_parser("plot", "Plot reward, evaluation, length, entropy and staleness of a run into reward.png.")
    add_run_dir(parser)
    add_local_only(parser)
    parser.set_defaults(action=plot_action)
    return parser


def plot_action(args: argparse.Namespace) -> int:
    """Plot a local run directory."""
    if args.on != "local":
        raise ValueError(
            "grpo plot reads a run directory, without --on; grpo run --on kubernetes fetches one when the run ends"
        )
    return commands.plot(args.run_dir)


def status_parser() -> argparse.ArgumentParser:
    """``grpo status``."""
    parser = command_parser("status", STATUS)
    add_run(parser, nargs="?")
    parser.add_argument(
        "--json", action="store_true", help="print the state of RUN as JSON, with the same keys everywhere"
    )
    add_place(parser, "status", "where the run is")
    parser.set_defaults(action=status_action)
    return parser


def status_action(args: argparse.Namespace) -> int:
    """Show the state of a run, or of all that a place lists."""
    if args.json and args.run is None:
        raise ValueError("--json prints the state of one run: give RUN")
    return place_of(args).status(args)


def logs_parser() -> argparse.ArgumentParser:
    """``grpo logs``."""
    parser = command_parser("logs", LOGS)
    add_run(parser)
    parser.add_argument("process", nargs="?", metavar="PROCESS", help="trainer, server-0, … (default: all)")
    components = ["trainer", "servers", "agents", "tools"]
    parser.add_argument("--component", choices=components, help="print only the logs of this component")
    parser.add_argument(
        "-n",
        "--lines",
        "--tail",
        type=line_count,
        default=50,
        metavar="N",
        help="number of last lines per log (default: 50)",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing new lines until Ctrl-C")
    add_place(parser, "logs", "where the run is")
    parser.set_defaults(action=lambda args: place_of(args).logs(args))
    return parser


def stop_parser() -> argparse.ArgumentParser:
    """``grpo stop``."""
    parser = command_parser("stop", STOP)
    add_run(parser)
    add_place(parser, "stop", "where the run is")
    parser.add_argument("--now", action="store_true", help="do not wait for a recovery checkpoint")
    parser.set_defaults(action=lambda args: place_of(args).stop(args))
    return parser


def suspend_parser() -> argparse.ArgumentParser:
    """``grpo suspend``."""
    parser = command_parser("suspend", SUSPEND)
    add_run(parser)
    add_place(parser, "suspend", "where the run is")
    parser.set_defaults(now=False, action=lambda args: place_of(args).stop(args))
    return parser


def scale_parser() -> argparse.ArgumentParser:
    """``grpo scale``."""
    parser = command_parser("scale", SCALE)
    add_run(parser)
    parser.add_argument("servers", metavar="N", type=server_count, help="number of servers")
    add_place(parser, "scale", "where the run is")
    parser.set_defaults(action=lambda args: place_of(args).scale(args))
    return parser


def completion_parser() -> argparse.ArgumentParser:
    """``grpo completion``."""
    parser = command_parser("completion", COMPLETION)
    parser.add_argument("shell", choices=sorted(completion.SCRIPTS), help="the shell that evaluates the output")
    parser.set_defaults(action=lambda args: completion.print_script(args.shell, parsers()))
    return parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    return {name: make() for name, (make, _) in COMMANDS.items()}


def crd_parser() -> argparse.ArgumentParser:
    """``grpo crd``."""
    parser = command_parser("crd", "Print the custom resource definition as YAML, for kubectl apply -f -.")
    parser.set_defaults(action=lambda args: commands.crd())
    return parser


def ui_parser() -> argparse.ArgumentParser:
    """``grpo ui``."""
    parser = command_parser("ui", UI)
    add_ui(parser, path=path, port=port)
    add_place(parser, "ui", "whose runs to show")
    parser.set_defaults(action=lambda args: place_of(args).ui(args))
    return parser


def list_parser() -> argparse.ArgumentParser:
    """``grpo list``."""
    parser = command_parser("list", LIST)
    add_roots(parser, path)
    parser.set_defaults(action=list_action)
    return parser


def resume_parser() -> argparse.ArgumentParser:
    """``grpo resume``."""
    parser = command_parser("resume", RESUME)
    add_run(parser)
    add_place(parser, "resume", "where the run is")
    parser.set_defaults(action=lambda args: place_of(args).resume(args))
    return parser


COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], str]] = {
    "run": (run_parser, "train"),
    "check": (check_parser, "check whether an experiment fits its GPUs and disk"),
    "eval": (eval_parser, "evaluate a checkpoint"),
    "compare": (compare_parser, "compare two evaluations problem by problem"),
    "list": (list_parser, "list runs and their states"),
    "status": (status_parser, "show the state of a run"),
    "logs": (logs_parser, "print the logs of a run"),
    "stop": (stop_parser, "end a run"),
    "suspend": (suspend_parser, "end a run after a recovery checkpoint, to resume it later"),
    "resume": (resume_parser, "continue a suspended run"),
    "scale": (scale_parser, "change the number of servers of a run"),
    "ui": (ui_parser, "show runs on a page in the browser"),
    "trace": (trace_parser, "write the trace of a run for Perfetto"),
    "plot": (plot_parser, "plot the statistics of a run"),
    "convert": (convert_parser, "convert AReaL's configuration file to an experiment.yaml"),
    "completion": (completion_parser, "print a script that completes grpo's arguments in a shell"),
    "crd": (crd_parser, "print the custom resource definition"),
}


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser of one command; not a subparser, which would reject options between positional arguments."""
    return argparse.ArgumentParser(
        prog=f"grpo {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_experiment(parser: argparse.ArgumentParser, description: str) -> None:
    """Add the arguments that select an experiment."""
    parser.add_argument(
        "--config", type=expand_home, metavar="FILE", help="experiment.yaml or AReaL's configuration file"
    )
    parser.add_argument("items", nargs="*", metavar="ITEM", help=description)


def add_port(parser: argparse.ArgumentParser) -> None:
    """Add --port."""
    parser.add_argument(
        "--port",
        type=port,
        metavar="N",
        help="port of the first server; others use the next ones (default: free ports)",
    )


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    """Add the run directory."""
    parser.add_argument("run_dir", metavar="RUN_DIR", type=path, help=RUN_DIR)


def add_run(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add the run: a local directory or an experiment in a cluster."""
    parser.add_argument("run", metavar="RUN", nargs=nargs, help=f"{RUN_DIR}; with --on kubernetes the experiment name")


def add_place(parser: argparse.ArgumentParser, command: str, description: str) -> None:
    """Add --on and the options of the places."""
    names = list(places())
    help_text = f"{description}: {listed(names).replace('local', 'local (this machine, default)', 1)}"
    parser.add_argument("--on", choices=names, default="local", help=help_text)
    for place in places().values():
        place.add_options(parser, command)


def add_local_only(parser: argparse.ArgumentParser) -> None:
    """Accept --on for a local-only command, so that it can explain itself."""
    parser.add_argument("--on", choices=list(places()), default="local", help=argparse.SUPPRESS)


def place_of(args: argparse.Namespace) -> PlaceCommands:
    """The place of --on. Raises ``ValueError`` for an option that it does not take."""
    place = places()[args.on]
    refuse_other_options(args, place)
    return place


def path(text: str) -> Path:
    """A path option; the shell leaves ``~`` in ``--option=~/x`` to the program."""
    return Path(expand_home(text))


def line_count(text: str) -> int:
    """A number of lines."""
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of lines; give 0 or more")
    return int(text)


def server_count(text: str) -> int:
    """A number of servers."""
    if not text.isdecimal() or not 0 < int(text[:6]) <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is not a number of servers; give 1 to 1024")
    return int(text)


def port(text: str) -> int:
    """A TCP port."""
    if not text.isdecimal() or not 0 < int(text[:6]) < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not a port; give 1 to 65535")
    return int(text)


def top_parser() -> argparse.ArgumentParser:
    """``grpo`` itself."""
    lines = [f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="grpo",
        description="Train language models with GRPO.\n\ncommands:\n" + "\n".join(lines),
        epilog="grpo COMMAND --help shows details; grpo run --help lists every configuration key.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=list(COMMANDS), help="one of the commands above")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``grpo``; returns the exit status."""
    prepare_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = top_parser().parse_args(arguments[:1]).command
    parser = COMMANDS[command][0]()
    if command == "run" and {"-h", "--help"} & set(arguments[1:]):
        return print_run_help(parser)
    args = parser.parse_intermixed_args(arguments[1:])
    try:
        logs.set_up(level=logging.WARNING, text_format="%(levelname)s: %(message)s")
        status = int(args.action(args))
        sys.stdout.flush()
        return status
    except RunError as error:
        return report(str(error), lines=error.lines, log=error.log, status=error.status)
    except ValueError as error:
        return report(str(error), status=USAGE_ERROR)
    except KeyboardInterrupt:
        return report("interrupted", status=INTERRUPTED)
    except BrokenPipeError:
        discard_output(sys.stdout)
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return report(f"{error}; free some space and run the same command again to continue", status=1)
        if error.filename is None:
            raise
        return report(str(error), status=1)


def print_run_help(parser: argparse.ArgumentParser) -> int:
    """Print the usage of ``grpo run`` and every configuration key."""
    sys.stdout.write(f"{parser.format_help()}\n{commands.key_help()}\n")
    return 0


def report(message: str, *, lines: Sequence[str] = (), log: Path | None = None, status: int) -> int:
    """Print an error and the log lines that explain it to standard error; returns ``status``."""
    errors = console_for(stderr=True)
    for line in lines:
        errors.print(f"  | {printable_line(line)}", style="dim", markup=False, soft_wrap=True)
    text = printable(f"grpo: {message}" + (f" (see {log})" if log else ""))
    errors.print(text, style="bold red", markup=False, soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
