"""`grpo run --on kubernetes`: applies an experiment, follows it and fetches its results. The run does not need grpo."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from areal_api import names
from areal_api.experiment import GRPOExperiment
from areal_api.load import with_home_expanded
from areal_api.status import TERMINAL_PHASES, ExperimentStatus
from areal_api.stored import read_experiment
from areal_launcher import run_files
from areal_launcher.cluster.checks import add_hint, check_api, check_files, check_operator, check_target
from areal_launcher.cluster.client import ApiError, Cluster, ClusterTarget, Object
from areal_launcher.cluster.code import PackedCode, pack_code, upload, upload_to_bucket
from areal_launcher.cluster.control import resume_if_stopped
from areal_launcher.cluster.fetch_checkpoint import fetch_checkpoint
from areal_launcher.cluster.fetch_results import fetch, source_of
from areal_launcher.cluster.follow import Follower, status_of
from areal_launcher.cluster.logs import failed_container_log
from areal_launcher.console import console_for
from areal_launcher.display import display_for
from areal_launcher.errors import RunError
from areal_launcher.fit import fit_in_cluster, require_fit
from areal_launcher.plot import plot_run
from areal_launcher.request import Request
from areal_launcher.results_table import results_table
from areal_launcher.torchrun import failed_rank_status, strip_report

INTERRUPTED = 130
SHOWN_LINES = 20
LIVE_FIELDS = {".spec.servers.replicas": ("servers", "replicas"), ".spec.runPolicy.suspend": ("runPolicy", "suspend")}


@dataclass(frozen=True)
class Submitted:
    """An experiment accepted by the cluster."""

    cluster: Cluster
    target: ClusterTarget
    command: str  # the command that follows it again
    experiment: GRPOExperiment
    namespace: str
    uid: str

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment.name

    def next_commands(self) -> str:
        """Commands for a run that is no longer followed."""
        kubectl, resource = self.target.kubectl, f"grpo {self.name} --namespace {self.namespace}"
        options = [*self.target.options]
        if self.target.namespace is None:
            options += ["--namespace", self.namespace]
        return "\n".join(
            [
                f"{self.name} continues in the cluster, context {self.cluster.context}, namespace {self.namespace}",
                f"  follow:  {self.command}",
                f"  stop:    {shlex.join(['grpo', 'stop', self.name, '--on', 'kubernetes', *options])}",
                f"  delete:  {kubectl} delete {resource}",
            ]
        )


def run(
    request: Request,
    target: ClusterTarget,
    *,
    detach: bool,
    results: Path | None,
    checkpoint: bool,
    force: bool = False,
) -> int:
    """Train in a cluster: 0 if the run Succeeded, 130 if Ctrl-C stopped following it.

    ``checkpoint``: also fetch the newest checkpoint of a run that Succeeded. ``force``: run an experiment that does not
    fit.
    """
    experiment = request.load()
    check_files(experiment.spec)
    experiment, code = pack_code(experiment)
    console = console_for()
    require_fit(
        fit_in_cluster(experiment.spec),
        force=force,
        notify=lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    cluster = Cluster.connect(target)
    namespace = namespace_of(experiment, target, cluster)
    directory = results or names.run_dir(with_home_expanded(experiment).spec.config)
    if not detach:
        check_target(directory, namespace=namespace, name=experiment.name)
    check_api(cluster)
    check_operator(cluster, lambda text: console.print(text, markup=False, soft_wrap=True))
    applied = submit(cluster, experiment, namespace, console, code)
    submitted = Submitted(
        cluster,
        target,
        command_line(request, target, results, checkpoint=checkpoint),
        experiment,
        namespace,
        str(applied["metadata"]["uid"]),
    )
    if detach:
        console.print(submitted.next_commands(), markup=False, soft_wrap=True)
        return 0
    try:
        body = follow(submitted, console)
    except KeyboardInterrupt:
        console.print(submitted.next_commands(), markup=False, soft_wrap=True)
        return INTERRUPTED
    return conclude(submitted, body, directory, console, checkpoint=checkpoint)


def namespace_of(experiment: GRPOExperiment, target: ClusterTarget, cluster: Cluster) -> str:
    """The namespace from the file, --namespace or the context."""
    namespace = experiment.metadata.namespace
    if namespace is not None and target.namespace is not None and namespace != target.namespace:
        raise ValueError(f"metadata.namespace is {namespace} but --namespace is {target.namespace}; remove one of them")
    return namespace or cluster.namespace


def command_line(request: Request, target: ClusterTarget, results: Path | None, *, checkpoint: bool) -> str:
    """The same command line again."""
    words = ["grpo", "run", "--on", "kubernetes", *target.options]
    words += ["--results", str(results)] if results is not None else []
    words += ["--checkpoint"] if checkpoint else []
    words += [request.script] if request.script is not None else []
    words += [str(request.path), *request.overrides]
    return shlex.join(words)


def manifest(experiment: GRPOExperiment, existing: Object | None) -> Object:
    """The object to apply, without defaults.

    The stored config may be spelled differently but equal (e.g. ``${…}``); keep it, since spec.config is immutable once
    the run has started.
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
    """Parse an experiment returned by the API server."""
    return read_experiment(body, source=f"experiment {body['metadata']['name']} of the cluster")[0]


def submit(
    cluster: Cluster,
    experiment: GRPOExperiment,
    namespace: str,
    console: Console,
    code: PackedCode | None = None,
) -> Object:
    """Apply the experiment, keeping live fields that others have changed. Its packed ``code`` is there before it."""
    existing = cluster.get(experiment.kind, namespace, experiment.name)
    if code is not None:
        owner = None if existing is None else str(existing["metadata"]["uid"])
        if code.config_map is None:
            upload_to_bucket(code, experiment.spec)
        else:
            upload(cluster, code, experiment.name, namespace, owner=owner)
        if existing is not None and parsed(existing).spec.code != experiment.spec.code:
            console.print("the code has changed; the next attempt of the trainer uses it", markup=False)
    body = manifest(experiment, existing)
    if existing is not None and not experiment.spec.run_policy.suspend and resume_if_stopped(cluster, existing):
        console.print(f"{experiment.name} was stopped and continues", markup=False)
    try:
        applied = apply(cluster, body, namespace)
    except ApiError as error:
        if not error.conflicts or not set(error.conflicts) <= set(LIVE_FIELDS):
            raise refusal(error, experiment, existing, namespace) from error
        for field in error.conflicts:
            section, key = LIVE_FIELDS[field]
            del body["spec"][section][key]
            console.print(f"{section}.{key} was changed in the cluster; keeping that value", markup=False)
        applied = apply(cluster, body, namespace)
    if code is not None and code.config_map is not None and existing is None:
        upload(cluster, code, experiment.name, namespace, owner=str(applied["metadata"]["uid"]))
    verb = "exists, following it" if existing is not None else "created"
    console.print(
        f"experiment {experiment.name} {verb}: context {cluster.context}, namespace {namespace}",
        markup=False,
        soft_wrap=True,
    )
    return applied


def apply(cluster: Cluster, body: Object, namespace: str) -> Object:
    """Apply, adding a hint to errors about an outdated definition."""
    try:
        return cluster.apply(body, namespace)
    except ApiError as error:
        raise ApiError(error.code, add_hint(str(error)), error.conflicts) from error


def refusal(error: ApiError, experiment: GRPOExperiment, existing: Object | None, namespace: str) -> RunError:
    """Why the API server rejected the experiment, and the fix."""
    if error.conflicts:
        fields = ", ".join(field.removeprefix(".spec.") for field in error.conflicts if field not in LIVE_FIELDS)
        return RunError(
            f"{experiment.name} exists with another value of {fields}; use the values that "
            f"kubectl get grpo {experiment.name} -o yaml shows, or choose another metadata.name"
        )
    text = f"the API server rejected {experiment.name}: {error}"
    if error.code == 404:
        text += f"; create it: kubectl create namespace {namespace}"
    if existing is not None and status_of(existing).start_time is not None and error.code == 422:
        text += f"; choose another metadata.name, or delete the run: kubectl delete grpo {experiment.name}"
    return RunError(text)


def follow(submitted: Submitted, console: Console) -> Object:
    """Show the run until it ends; the final experiment."""
    with display_for(console) as display:
        return Follower(
            submitted.cluster, submitted.namespace, submitted.name, submitted.uid, display, submitted.experiment
        ).run()


def conclude(submitted: Submitted, body: Object, directory: Path, console: Console, *, checkpoint: bool) -> int:
    """Fetch and show the results. Raises ``RunError`` if the run Failed or they cannot be fetched."""
    status = status_of(body)
    assert status.phase in TERMINAL_PHASES
    problem: RunError | None = None
    if status.phase == "Succeeded" or status.step is not None:
        console.print("fetching the results", markup=False)
        try:
            fetch_all(submitted, body, directory, checkpoint=checkpoint and status.phase == "Succeeded")
            console.print(results_table(directory))
        except RunError as error:
            problem = error
    if status.phase == "Failed":
        if problem is not None:
            console.print(f"cannot fetch its statistics: {problem}", markup=False, soft_wrap=True)
        raise failure_of(submitted, status)
    if problem is not None:
        raise RunError(
            f"{submitted.name} Succeeded, but its results cannot be fetched: {problem}; run the same command to retry"
        ) from problem
    return 0


def fetch_all(submitted: Submitted, body: Object, directory: Path, *, checkpoint: bool) -> None:
    """Fetch the results and draw reward.png."""
    source = source_of(submitted.cluster, body)
    try:
        fetch(submitted.cluster, source, directory, submitted.experiment)
        if checkpoint:
            fetch_checkpoint(submitted.cluster, source, directory)
    except OSError as error:
        raise RunError(
            f"cannot write to {directory} ({error.strerror}); choose another directory with --results"
        ) from error
    if run_files.read_stats(directory).lines:
        plot_run(directory)


def failure_of(submitted: Submitted, status: ExperimentStatus) -> RunError:
    """Why a run Failed, with the last log lines and the exit status of the failed container."""
    lines, code = failed_container_log(submitted.cluster, submitted.namespace, submitted.name, status.attempt)
    return RunError(
        f"{submitted.name} Failed: {status.message}",
        lines=strip_report(lines)[-SHOWN_LINES:],
        status=failed_rank_status(lines) or code or 1,
    )
