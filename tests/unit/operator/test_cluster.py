"""The client of the API server: paths, errors, and definitions that lack a field."""

from __future__ import annotations

import aiohttp
import pytest

from areal_operator.cluster import MAX_MESSAGE_LENGTH, ApiError, is_transient, path_of
from areal_operator.observed import Object
from support.memory_cluster import MemoryCluster


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("Pod", None), "/api/v1/pods"),
        (("Pod", "ns", "x"), "/api/v1/namespaces/ns/pods/x"),
        (("Job", "ns"), "/apis/batch/v1/namespaces/ns/jobs"),
        (("Job", "ns", "x", "status"), "/apis/batch/v1/namespaces/ns/jobs/x/status"),
    ],
)
def test_paths_are_those_of_the_api_server(arguments: tuple[str, ...], path: str) -> None:
    assert path_of(*arguments) == path


def test_an_error_is_its_first_line_of_bounded_length() -> None:
    error = ApiError(422, "Invalid", 'Job "x" is invalid: spec.template: field is immutable\n{"spec": …}\n…')
    assert str(error) == 'Job "x" is invalid: spec.template: field is immutable'
    assert len(str(ApiError(422, "Invalid", "x" * 100_000))) == MAX_MESSAGE_LENGTH
    assert str(ApiError(503, "ServiceUnavailable", "")) == "HTTP status 503 ServiceUnavailable"


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ApiError(503, "", ""), True),
        (ApiError(429, "", ""), True),
        (ApiError(500, "", ""), False),
        (ApiError(403, "", ""), False),
        (TimeoutError(), True),
        (aiohttp.ClientPayloadError(), True),
        (ConnectionResetError(), True),
        (RecursionError(), False),
    ],
)
def test_transient_errors_are_worth_a_retry(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


async def test_fields_that_the_definition_lacks_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    cluster = MemoryCluster()
    cluster.add({"kind": "GRPOExperiment", "metadata": {"name": "x", "namespace": "ns"}})

    def older(method: str, obj: Object) -> ApiError | None:
        status = obj.get("status") or {}
        lines = [f".status.{name}: field not declared in schema" for name in ("a", "b") if name in status]
        return ApiError(500, "", "\n".join(["failed to create typed patch object", *lines])) if lines else None

    cluster.check = older
    body = {"kind": "GRPOExperiment", "metadata": {"name": "x", "namespace": "ns"}}
    for step in (1, 2):
        await cluster.apply({**body, "status": {"a": 1, "b": {"c": 2}, "step": step}}, subresource="status")
        assert cluster.objects["GRPOExperiment", "ns", "x"]["status"] == {"step": step}
    assert caplog.text.count("lacks status.a, status.b") == 1


async def test_any_other_refusal_of_a_status_is_an_error() -> None:
    cluster = MemoryCluster()
    cluster.check = lambda method, obj: ApiError(500, "", "etcdserver: request is too large")
    body = {"kind": "GRPOExperiment", "metadata": {"name": "x", "namespace": "ns"}, "status": {"a": 1}}
    with pytest.raises(ApiError, match="too large"):
        await cluster.apply(body, subresource="status")
