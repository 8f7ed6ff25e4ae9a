"""A run in a cluster: applied, followed and, at its end, brought here. The run does not need us: it goes on without."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from areal_api import names
from areal_api.experiment import GRPOExperiment
from areal_api.load import parse_experiment
from areal_api.status import TERMINAL_PHASES, ExperimentStatus
from areal_launcher import run_files
from areal_launcher.actions import Request, console_for
from areal_launcher.cluster.checks import check_api, check_files, check_operator, check_target, with_fix
from areal_launcher.cluster.client import ApiError, Cluster, Object, Place
from areal_launcher.cluster.fetch_checkpoint import fetch_checkpoint
from areal_launcher.cluster.fetch_results import fetch, source_of
from areal_launcher.cluster.follow import Follower, status_of
from areal_launcher.cluster.logs import last_words
from areal_launcher.display import closing_table, display_for
from areal_launcher.errors import RunError
from areal_launcher.plot import plot_run
from areal_launcher.torchrun import status_of_rank, without_torchrun

INTERRUPTED = 130
SHOWN_LINES = 20
LIVE_FIELDS = {".spec.servers.replicas": ("servers", "replicas"), ".spec.runPolicy.suspend": ("runPolicy", "suspend")}


class RunFailed(RunError):
    """The run has Failed in the cluster. ``status`` is the exit status for ours."""

    def __init__(self, message: str, lines: list[str], status: int) -> None:
        super().__init__(message, lines=without_torchrun(lines)[-SHOWN_LINES:])
        self.status = status_of_rank(lines) or status


@dataclass(frozen=True)
class Submitted:
    """An experiment that the cluster has accepted."""

    cluster: Cluster
    place: Place
    command: str  # that follows it again
    experiment: GRPOExperiment
    namespace: str
    uid: str

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment.name

    def how_to_go_on(self) -> str:
        """What a person does with a run that is not followed."""
        kubectl, about = self.place.kubectl, f"grpo {self.name} --namespace {self.namespace}"
        suspend = '{"spec":{"runPolicy":{"suspend":true}}}'
        return "\n".join(
            [
                f"{self.name} goes on in the cluster, context {self.cluster.context}, namespace {self.namespace}",
                f"  follow:  {self.command}",
                f"  suspend: {kubectl} patch {about} --type merge -p '{suspend}'",
                f"  delete:  {kubectl} delete {about}",
            ]
        )


def run(request: Request, place: Place, *, detach: bool, results: Path | None, checkpoint: bool) -> int:
    """Train in a cluster: 0 when the run has Succeeded, 130 when it is left alone by Ctrl-C.

    ``checkpoint``: bring the newest checkpoint of a run that has Succeeded, too.
    """
    experiment = request.load()
    check_files(experiment.spec)
    cluster = Cluster.connect(place)
    console = console_for()
    namespace = namespace_of(experiment, place, cluster)
    target = results or names.run_dir(experiment.spec.config)
    if not detach:
        check_target(target, namespace=namespace, name=experiment.name)
    check_api(cluster)
    check_operator(cluster, lambda text: console.print(text, markup=False, soft_wrap=True))
    applied = submit(cluster, experiment, namespace, console)
    submitted = Submitted(
        cluster,
        place,
        command_of(request, place, results, checkpoint=checkpoint),
        experiment,
        namespace,
        str(applied["metadata"]["uid"]),
    )
    if detach:
        console.print(submitted.how_to_go_on(), markup=False, soft_wrap=True)
        return 0
    try:
        body = follow(submitted, console)
    except KeyboardInterrupt:
        console.print(submitted.how_to_go_on(), markup=False, soft_wrap=True)
        return INTERRUPTED
    return conclude(submitted, body, target, console, checkpoint=checkpoint)


def namespace_of(experiment: GRPOExperiment, place: Place, cluster: Cluster) -> str:
    """The namespace of the file, of --namespace, or of the context."""
    written = experiment.metadata.namespace
    if written is not None and place.namespace is not None and written != place.namespace:
        raise ValueError(f"metadata.namespace is {written}, --namespace {place.namespace}; make them the same")
    return written or cluster.namespace


def command_of(request: Request, place: Place, results: Path | None, *, checkpoint: bool) -> str:
    """The same command again."""
    words = ["grpo", "run", "--on", "kubernetes", *place.options]
    words += ["--results", str(results)] if results is not None else []
    words += ["--checkpoint"] if checkpoint else []
    words += [request.script] if request.script is not None else []
    words += [str(request.path), *request.overrides]
    return shlex.join(words)


def manifest(experiment: GRPOExperiment, existing: Object | None) -> Object:
    """What is applied: what was written, not the defaults. The configuration of a run that is there stays as it is.

    The same configuration may be written in another way there, as with ``${…}``; a run that has started takes none.
    """
    body = experiment.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"status"})
    body["apiVersion"], body["kind"] = experiment.api_version, experiment.kind
    config = body["spec"]["config"]
    if config.get("experiment_name") == experiment.name:
        del config["experiment_name"]
    if existing is not None and parsed(existing).spec.config == experiment.spec.config:
        body["spec"]["config"] = existing["spec"]["config"]
    return body


def parsed(body: Object) -> GRPOExperiment:
    """An experiment as the API server gives it."""
    return parse_experiment(body, source=f"experiment {body['metadata']['name']} of the cluster")


def submit(cluster: Cluster, experiment: GRPOExperiment, namespace: str, console: Console) -> Object:
    """Apply the experiment. What may change while it runs, and was changed by others, is left as it is."""
    existing = cluster.get(experiment.kind, namespace, experiment.name)
    body = manifest(experiment, existing)
    try:
        applied = apply(cluster, body, namespace)
    except ApiError as error:
        if not error.conflicts or not set(error.conflicts) <= set(LIVE_FIELDS):
            raise refusal(error, experiment, existing, namespace) from error
        for field in error.conflicts:
            section, key = LIVE_FIELDS[field]
            del body["spec"][section][key]
            console.print(f"{section}.{key} was changed in the cluster and is left as it is", markup=False)
        applied = apply(cluster, body, namespace)
    verb = "follows" if existing is not None else "made"
    console.print(
        f"experiment {experiment.name} {verb}: context {cluster.context}, namespace {namespace}",
        markup=False,
        soft_wrap=True,
    )
    return applied


def apply(cluster: Cluster, body: Object, namespace: str) -> Object:
    """Apply; what the server's definition does not know gets the fix."""
    try:
        return cluster.apply(body, namespace)
    except ApiError as error:
        raise ApiError(error.code, with_fix(str(error)), error.conflicts) from error


def refusal(error: ApiError, experiment: GRPOExperiment, existing: Object | None, namespace: str) -> RunError:
    """Why the API server refuses the experiment, and what to do."""
    if error.conflicts:
        fields = ", ".join(field.removeprefix(".spec.") for field in error.conflicts if field not in LIVE_FIELDS)
        return RunError(
            f"{experiment.name} exists, and {fields} was set otherwise there; give the values that "
            f"kubectl get grpo {experiment.name} -o yaml shows, or another metadata.name"
        )
    text = f"the API server refuses {experiment.name}: {error}"
    if error.code == 404:
        text += f"; make it: kubectl create namespace {namespace}"
    if existing is not None and status_of(existing).start_time is not None and error.code == 422:
        text += f"; choose another metadata.name, or delete the run: kubectl delete grpo {experiment.name}"
    return RunError(text)


def follow(submitted: Submitted, console: Console) -> Object:
    """Show the run until it has ended; the experiment as it is then."""
    with display_for(console) as display:
        return Follower(
            submitted.cluster, submitted.namespace, submitted.name, submitted.uid, display, submitted.experiment
        ).run()


def conclude(submitted: Submitted, body: Object, target: Path, console: Console, *, checkpoint: bool) -> int:
    """Bring the results here and show them. ``RunError`` where the run has Failed or they cannot be had."""
    status = status_of(body)
    assert status.phase in TERMINAL_PHASES
    problem: RunError | None = None
    if status.phase == "Succeeded" or status.step is not None:
        console.print("fetching the results", markup=False)
        try:
            bring(submitted, body, target, checkpoint=checkpoint and status.phase == "Succeeded")
            console.print(closing_table(target))
        except RunError as error:
            problem = error
    if status.phase == "Failed":
        if problem is not None:
            console.print(f"its statistics could not be fetched: {problem}", markup=False, soft_wrap=True)
        raise failure_of(submitted, status)
    if problem is not None:
        raise RunError(
            f"{submitted.name} has Succeeded, but its results could not be fetched: {problem}; "
            "the same command tries again"
        ) from problem
    return 0


def bring(submitted: Submitted, body: Object, target: Path, *, checkpoint: bool) -> None:
    """Fetch the results and draw the picture."""
    source = source_of(submitted.cluster, body)
    try:
        fetch(submitted.cluster, source, target, submitted.experiment)
        if checkpoint:
            fetch_checkpoint(submitted.cluster, source, target)
    except OSError as error:
        raise RunError(f"{target} cannot be written ({error.strerror}); name another place by --results") from error
    if run_files.read_stats(target).lines:
        plot_run(target)


def failure_of(submitted: Submitted, status: ExperimentStatus) -> RunFailed:
    """Why a run has Failed, with the last words of the pod that failed."""
    lines, code = last_words(submitted.cluster, submitted.namespace, submitted.name, status.attempt)
    return RunFailed(f"{submitted.name} has Failed: {status.message}", lines, code or 1)
