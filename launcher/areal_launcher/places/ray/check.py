"""`grpo check --on ray`: whether an experiment fits, and whether the cluster has room for it now."""

from __future__ import annotations

import ray

from areal_api import names
from areal_api.load import with_home_expanded
from areal_launcher.check import FITS, PROBLEMS, print_report
from areal_launcher.console import console_for
from areal_launcher.core.plan import plan_run
from areal_launcher.fit import fit_in_jobs, gpu_in_jobs
from areal_launcher.places.ray.bundles import bundles_of, shortage, unplaced
from areal_launcher.places.ray.connection import alive_nodes, connect
from areal_launcher.request import Request


def check(request: Request, *, address: str | None, gpu: str | None) -> int:
    """Print the report of `grpo check` and what the cluster lacks; 0 if the experiment fits and has room, else 1.

    ``gpu``: name of the GPUs to compare with.
    """
    experiment = with_home_expanded(request.load())
    spec = experiment.spec
    run = names.run_dir(spec.config)
    plan_run(experiment, run=run, key_file=run / "api-key", threads=1)  # refuses what no Ray cluster can run
    connected = connect(address)
    try:
        nodes = alive_nodes()
    finally:
        ray.shutdown()
    found = gpu_in_jobs(spec, gpu)
    report = fit_in_jobs(spec, gpu=found)
    print_report(report, found)
    bundles = bundles_of(spec)
    room = not unplaced(bundles, nodes, empty=False)
    text = "has room for it now" if room else f"has no room for it now: {shortage(bundles, nodes)}"
    mark = "✓" if room else "✗"
    console_for().print(f"{mark} the Ray cluster at {connected} {text}", markup=False, soft_wrap=True)
    return FITS if room and report.fits else PROBLEMS
