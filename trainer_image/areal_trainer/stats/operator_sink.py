"""Reports progress to the operator. Training never waits for a report and never fails because of one."""

from __future__ import annotations

import http.client
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from areal_api import names
from areal_api.progress import INTERVAL_S, ProgressReport, report_of

logger = logging.getLogger(__name__)
TIMEOUT_S = 5.0
LAST_S = 5.0  # longest wait for the last report at the end of a run


class ProgressSink:
    """Posts the newest statistics from a thread, at most once per ``interval_s``; older ones are dropped."""

    def __init__(self, url: str, token_file: Path, *, interval_s: float = INTERVAL_S) -> None:
        self._url = url
        self._token_file = token_file
        self._interval_s = interval_s
        self._eval_reward: float | None = None
        self._newest: ProgressReport | None = None
        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def log(self, step: int, stats: Mapping[str, float]) -> None:
        """Queue a step for reporting."""
        report = report_of({**stats, "step": step})
        if report.eval_reward is not None:
            self._eval_reward = report.eval_reward
        with self._changed:
            self._newest = report.model_copy(update={"eval_reward": self._eval_reward})
            self._changed.notify()

    def close(self) -> None:
        """Send the last report, waiting at most ``LAST_S``."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(LAST_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ending)
                report, self._newest = self._newest, None
            if report is None:
                return
            self._post(report)
            with self._changed:
                self._changed.wait_for(lambda: self._ending, self._interval_s)

    def _post(self, report: ProgressReport) -> None:
        body = report.model_dump_json(by_alias=True, exclude_none=True).encode()
        try:
            token = self._token_file.read_text().strip()  # the kubelet renews it
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                pass
        except (OSError, urllib.error.URLError, http.client.HTTPException, ValueError) as error:
            logger.warning("the progress report of step %d failed: %s", report.step, error)


def progress_sink(env: Mapping[str, str]) -> list[ProgressSink]:
    """The sink configured by the environment, if any. Raises ``ValueError`` if only part of it is configured."""
    url, token_file = env.get(names.PROGRESS_URL), env.get(names.PROGRESS_TOKEN_FILE)
    if not url:
        return []
    if not token_file:
        raise ValueError(f"{names.PROGRESS_URL} is set, {names.PROGRESS_TOKEN_FILE} is not; set it to the token's file")
    return [ProgressSink(url, Path(token_file))]


def write_termination_message(env: Mapping[str, str], error: BaseException) -> None:
    """Write a configuration error to Kubernetes' termination log; the run is not retried."""
    path = env.get(names.TERMINATION_LOG)
    if path:
        Path(path).write_text(f"error: {error}\n"[:4000], encoding="utf-8")
