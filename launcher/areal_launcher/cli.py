"""``grpo``: train, evaluate, convert, and look at runs."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from areal_api import logs
from areal_launcher import actions
from areal_launcher.errors import RunError

if TYPE_CHECKING:
    from areal_launcher.cluster.client import Place

USAGE_ERROR = 2
INTERRUPTED = 130

RUN = """\
Train. EXPERIMENT.yaml is an experiment (kind: GRPOExperiment), or AReaL's own gsm8k_grpo.yaml; --config names it too.
SCRIPT.py takes the place of the built-in training loop. key=value sets a key: from spec on in an experiment, from the
top in AReaL's file; +sglang.x=y gives SGLang an argument that has no key.

  grpo run examples/tiny/experiment.yaml config.total_train_steps=20
  grpo run gsm8k_grpo.py --config gsm8k_grpo.yaml actor.path=Qwen/Qwen3-1.7B +sglang.attention_backend=triton

The same command goes on from the last recovery checkpoint. Ctrl-C lets the trainer write one; again: ends at once.

With --on kubernetes the run is an object of the cluster, where the operator trains it. It is followed, and at its end
stats.jsonl, summary.json, config.yaml and reward.png are brought into the run directory here, with --checkpoint the
newest checkpoint too; all of them stay on its volume. Ctrl-C leaves it alone: it goes on, and the same command follows
it again.

  grpo run --on kubernetes examples/tiny/experiment.yaml --namespace team-a --checkpoint"""

EVAL = """\
Evaluate a Hugging Face checkpoint on valid_dataset through a server, and print its mean reward.
CHECKPOINT is a directory, a name on the hub, or a run directory, which stands for its newest checkpoint.
The experiment is the one of the run that CHECKPOINT lies in, unless one is given.

  grpo eval runs/tiny/trial0
  grpo eval Qwen/Qwen3-1.7B --config gsm8k_grpo.yaml"""

RUN_DIR = "<fileroot>/<experiment_name>/<trial_name>"

STATUS = """\
Say how a run stands: the one in a run directory, or with --on kubernetes an experiment of the cluster, all without RUN.

  grpo status runs/tiny/trial0
  grpo status --on kubernetes
  grpo status tiny --on kubernetes --namespace team-a"""

LOGS = """\
Print the logs of a run: of its processes here, or with --on kubernetes of its pods; of a container that crashed and is
not back yet, what it wrote before.

  grpo logs runs/tiny/trial0 trainer
  grpo logs tiny --on kubernetes --component servers -f"""

CONVERT = """\
Write AReaL's own configuration file as an experiment.yaml. What has no meaning here is named on standard error.

  grpo convert gsm8k_grpo.yaml -o experiment.yaml"""


def run_parser() -> argparse.ArgumentParser:
    """``grpo run``."""
    parser = command_parser("run", RUN)
    add_experiment(parser, "SCRIPT.py, EXPERIMENT.yaml and key=value, in any order")
    add_place(parser, "where to run: local, this machine (default), or kubernetes")
    parser.add_argument("--detach", action="store_true", help="do not follow the run in the cluster")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="where results of the cluster go (default: the run directory)"
    )
    parser.add_argument("--checkpoint", action="store_true", help="bring the newest checkpoint here, too")
    add_port(parser)
    parser.set_defaults(action=run_action)
    return parser


def run_action(chosen: argparse.Namespace) -> int:
    """Train here or in a cluster."""
    request, place = actions.Request.of(chosen.items, chosen.config), place_of(chosen)
    if place is None:
        given = {"--detach": chosen.detach, "--results": chosen.results, "--checkpoint": chosen.checkpoint}
        refuse_without_cluster(**given)
        return actions.run(request, chosen.port)
    if chosen.port is not None:
        raise ValueError("--port is for servers on this machine; leave it out with --on kubernetes")
    from areal_launcher.cluster import run as cluster_run

    if chosen.detach and chosen.checkpoint:
        raise ValueError("--detach follows nothing, so --checkpoint brings nothing; leave one of them out")
    return cluster_run.run(request, place, detach=chosen.detach, results=chosen.results, checkpoint=chosen.checkpoint)


def eval_parser() -> argparse.ArgumentParser:
    """``grpo eval``."""
    parser = command_parser("eval", EVAL)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint, run directory or name on the hub")
    add_experiment(parser, "EXPERIMENT.yaml and key=value, in any order")
    add_here_only(parser)
    add_port(parser)
    parser.set_defaults(action=eval_action)
    return parser


def eval_action(chosen: argparse.Namespace) -> int:
    """Evaluate here."""
    if chosen.on == "kubernetes":
        raise ValueError(
            "grpo eval runs here alone; in a cluster the run itself evaluates: "
            "set config.valid_dataset and config.evaluator.freq_steps"
        )
    return actions.evaluate(chosen.checkpoint, actions.Request.of(chosen.items, chosen.config), chosen.port)


def convert_parser() -> argparse.ArgumentParser:
    """``grpo convert``."""
    parser = command_parser("convert", CONVERT)
    add_experiment(parser, "gsm8k_grpo.yaml and key=value")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write (default: standard output)")
    parser.set_defaults(
        action=lambda chosen: actions.convert(actions.Request.of(chosen.items, chosen.config), chosen.output)
    )
    return parser


def plot_parser() -> argparse.ArgumentParser:
    """``grpo plot``."""
    parser = command_parser("plot", "Draw reward.png: reward with evaluation, completion length, entropy, staleness.")
    add_run_dir(parser)
    add_here_only(parser)
    parser.set_defaults(action=plot_action)
    return parser


def plot_action(chosen: argparse.Namespace) -> int:
    """Draw what is here."""
    if chosen.on == "kubernetes":
        raise ValueError(
            "grpo plot draws a run directory of this machine; grpo run --on kubernetes brings one here when it ends"
        )
    return actions.plot(chosen.run_dir)


def status_parser() -> argparse.ArgumentParser:
    """``grpo status``."""
    parser = command_parser("status", STATUS)
    add_run(parser, nargs="?")
    add_place(parser, "where the run is: local (default) or kubernetes")
    parser.set_defaults(action=status_action)
    return parser


def status_action(chosen: argparse.Namespace) -> int:
    """Look at a run directory, or into a cluster."""
    place = place_of(chosen)
    if place is None:
        if chosen.run is None:
            raise ValueError("no run: give a run directory, or --on kubernetes for the experiments of a cluster")
        return actions.status(Path(chosen.run))
    from areal_launcher.cluster import status as cluster_status

    return cluster_status.status(chosen.run, place)


def logs_parser() -> argparse.ArgumentParser:
    """``grpo logs``."""
    parser = command_parser("logs", LOGS)
    add_run(parser)
    parser.add_argument("process", nargs="?", metavar="PROCESS", help="trainer, server-0, … (default: all)")
    parser.add_argument("--component", choices=["trainer", "servers"], help="only the logs of these")
    parser.add_argument(
        "-n", "--lines", "--tail", type=int, default=50, metavar="N", help="last lines of each log (default: 50)"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    add_place(parser, "where the run is: local (default) or kubernetes")
    parser.set_defaults(action=logs_action)
    return parser


def logs_action(chosen: argparse.Namespace) -> int:
    """Print logs of processes here, or of pods."""
    place = place_of(chosen)
    told = {"component": chosen.component, "process": chosen.process, "lines": chosen.lines, "follow": chosen.follow}
    if place is None:
        return actions.logs(Path(chosen.run), **told)
    from areal_launcher.cluster import logs as cluster_logs

    return cluster_logs.logs(chosen.run, place, **told)


def crd_parser() -> argparse.ArgumentParser:
    """``grpo crd``."""
    parser = command_parser("crd", "Print the custom resource definition as YAML, for kubectl apply -f -.")
    parser.set_defaults(action=lambda chosen: actions.crd())
    return parser


COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], str]] = {
    "run": (run_parser, "train"),
    "eval": (eval_parser, "evaluate a checkpoint"),
    "status": (status_parser, "say how a run stands"),
    "logs": (logs_parser, "print the logs of a run"),
    "plot": (plot_parser, "draw the picture of a run"),
    "convert": (convert_parser, "turn AReaL's gsm8k_grpo.yaml into an experiment.yaml"),
    "crd": (crd_parser, "print the custom resource definition"),
}


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser of one command. They are no subparsers: those do not take options between positional arguments."""
    return argparse.ArgumentParser(
        prog=f"grpo {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_experiment(parser: argparse.ArgumentParser, what: str) -> None:
    """Arguments that name an experiment."""
    parser.add_argument("--config", metavar="FILE", help="experiment.yaml or AReaL's own configuration file")
    parser.add_argument("items", nargs="*", metavar="ITEM", help=what)


def add_port(parser: argparse.ArgumentParser) -> None:
    """Where the servers listen."""
    parser.add_argument(
        "--port", type=int, metavar="N", help="port of the first server; the others follow (default: free ports)"
    )


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    """Which run of this machine."""
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=RUN_DIR)


def add_run(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Which run, here or in a cluster."""
    parser.add_argument(
        "run", metavar="RUN", nargs=nargs, help=f"{RUN_DIR}; with --on kubernetes the experiment's name"
    )


def add_place(parser: argparse.ArgumentParser, what: str) -> None:
    """Here, or which cluster."""
    parser.add_argument("--on", choices=["local", "kubernetes"], default="local", help=what)
    parser.add_argument("--namespace", metavar="NAME", help="namespace in the cluster (default: the context's)")
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig (default: the current one)")
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, else ~/.kube/config")


def add_here_only(parser: argparse.ArgumentParser) -> None:
    """A command that runs here alone says so where a cluster is asked for."""
    parser.add_argument("--on", choices=["local", "kubernetes"], default="local", help=argparse.SUPPRESS)


def place_of(chosen: argparse.Namespace) -> Place | None:
    """The cluster that is meant; None where none is. ``ValueError`` for options that do not go together."""
    options = {"--namespace": chosen.namespace, "--context": chosen.context, "--kubeconfig": chosen.kubeconfig}
    if chosen.on == "local":
        refuse_without_cluster(**options)
        return None
    try:
        from areal_launcher.cluster.client import Place
    except ModuleNotFoundError as error:
        raise ValueError(f"--on kubernetes needs {error.name}: pip install 'areal-k8s[kubernetes]'") from error
    return Place(chosen.kubeconfig, chosen.context, chosen.namespace)


def refuse_without_cluster(**options: object) -> None:
    """``ValueError`` for what was given and has a meaning in a cluster alone."""
    for option, value in options.items():
        if value:
            raise ValueError(f"{option} is for runs in a cluster; add --on kubernetes")


def top_parser() -> argparse.ArgumentParser:
    """``grpo`` itself."""
    lines = [f"  {name:<9}{text}" for name, (_, text) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="grpo",
        description="GRPO training of reasoning models.\n\ncommands:\n" + "\n".join(lines),
        epilog="grpo COMMAND --help tells more; grpo run --help lists every configuration key.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=list(COMMANDS), help="one of the above")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``grpo``; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = top_parser().parse_args(arguments[:1]).command
    parser = COMMANDS[command][0]()
    if command == "run" and {"-h", "--help"} & set(arguments[1:]):
        return print_run_help(parser)
    chosen = parser.parse_intermixed_args(arguments[1:])
    try:
        logs.set_up(level=logging.WARNING, text_format="%(levelname)s: %(message)s")
        return int(chosen.action(chosen))
    except RunError as error:
        return report(str(error), lines=error.lines, log=error.log, status=getattr(error, "status", 1))
    except ValueError as error:
        return report(str(error), status=USAGE_ERROR)
    except KeyboardInterrupt:
        return report("interrupted", status=INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return report(f"{error}; free some room, then the same command goes on", status=1)


def print_run_help(parser: argparse.ArgumentParser) -> int:
    """The usage of ``grpo run``, then every configuration key."""
    sys.stdout.write(f"{parser.format_help()}\n{actions.key_help()}\n")
    return 0


def report(message: str, *, lines: Sequence[str] = (), log: Path | None = None, status: int) -> int:
    """Tell on standard error what went wrong; ``status``."""
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    for line in lines:
        errors.print(f"  | {line}", style="dim")
    errors.print(f"grpo: {message}" + (f" (see {log})" if log else ""), style="bold red")
    return status


if __name__ == "__main__":
    sys.exit(main())
