"""Parts of a pod that an experiment may set, as in Kubernetes' core/v1, with limits on every list and text.

The models only validate and describe: ``Shape`` keeps the values as the plain mappings that manifests consist of.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, core_schema

from areal_api.quantities import MAX_LENGTH, PATTERN, parse_quantity
from areal_api.section import CamelSection

ENV_NAME = "^[ -<>-~]+$"  # printable ASCII but "="
SCALAR = "scalar"  # key in a field's JSON schema extra: a number or a text

Name = Annotated[str, Field(min_length=1, max_length=253)]
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]  # prefix of 253 characters, slash, name of 63
LabelValue = Annotated[str, Field(max_length=63)]
Path = Annotated[str, Field(max_length=4096)]
Mode = Annotated[int, Field(ge=0, le=0o777)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
ItemList = Field(None, max_length=64)


class PodSection(CamelSection):
    """A part of a pod. A number is no text here, as for the API server: ``value: 1`` is refused."""

    model_config = ConfigDict(coerce_numbers_to_str=False)


class Shape:
    """Annotates a mapping with the model of its content. The value stays as it was written."""

    def __init__(self, model: type[CamelSection]) -> None:
        self.model = model

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            _validated,
            handler.generate_schema(self.model),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )


def _validated(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    handler(value)
    return value


def _check_quantity(text: str) -> str:
    parse_quantity(text)
    return text


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    Field(max_length=MAX_LENGTH, pattern=PATTERN, json_schema_extra={SCALAR: True}),
    BeforeValidator(_as_text),
    AfterValidator(_check_quantity),
]
Quantities = Annotated[dict[Name, Quantity], Field(max_length=32)]


class FieldRef(PodSection):
    """A field of the pod."""

    field_path: Name
    api_version: Name | None = None


class ResourceFieldRef(PodSection):
    """A resource of a container."""

    resource: Name
    container_name: Name | None = None
    divisor: Quantity | None = None


class KeyRef(PodSection):
    """A key of a ConfigMap or Secret."""

    name: Name
    key: Name
    optional: bool | None = None


class EnvVarSource(PodSection):
    """Where the value of a variable comes from."""

    field_ref: Annotated[dict[str, Any], Shape(FieldRef)] | None = None
    resource_field_ref: Annotated[dict[str, Any], Shape(ResourceFieldRef)] | None = None
    config_map_key_ref: Annotated[dict[str, Any], Shape(KeyRef)] | None = None
    secret_key_ref: Annotated[dict[str, Any], Shape(KeyRef)] | None = None


class EnvVar(PodSection):
    """An environment variable."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=ENV_NAME)]
    value: str | None = Field(None, max_length=16_384)
    value_from: Annotated[dict[str, Any], Shape(EnvVarSource)] | None = None


class Reference(PodSection):
    """An object of the same namespace."""

    name: Name


class ResourceClaim(PodSection):
    """A claim of dynamic resource allocation."""

    name: Name
    request: Name | None = None


class Resources(PodSection):
    """Requests and limits."""

    limits: Quantities | None = None
    requests: Quantities | None = None
    claims: list[Annotated[dict[str, Any], Shape(ResourceClaim)]] | None = Field(None, max_length=16)


class Toleration(PodSection):
    """A tolerated taint."""

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal", "Lt", "Gt"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(None, ge=-(2**31), le=2**31 - 1)


class Requirement(PodSection):
    """A requirement on a label."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[LabelValue] | None = ItemList


class LabelSelector(PodSection):
    """A selector of labels."""

    match_labels: Labels | None = None
    match_expressions: list[Annotated[dict[str, Any], Shape(Requirement)]] | None = ItemList


class NodeSelectorTerm(PodSection):
    """Requirements on one node."""

    match_expressions: list[Annotated[dict[str, Any], Shape(Requirement)]] | None = ItemList
    match_fields: list[Annotated[dict[str, Any], Shape(Requirement)]] | None = ItemList


class NodeSelector(PodSection):
    """Alternatives, one of which a node must meet."""

    node_selector_terms: list[Annotated[dict[str, Any], Shape(NodeSelectorTerm)]] = Field(max_length=64)


class PreferredNode(PodSection):
    """A preferred node."""

    weight: int = Field(ge=1, le=100)
    preference: Annotated[dict[str, Any], Shape(NodeSelectorTerm)]


class NodeAffinity(PodSection):
    """Affinity to nodes."""

    required_during_scheduling_ignored_during_execution: Annotated[dict[str, Any], Shape(NodeSelector)] | None = None
    preferred_during_scheduling_ignored_during_execution: (
        list[Annotated[dict[str, Any], Shape(PreferredNode)]] | None
    ) = ItemList


class PodAffinityTerm(PodSection):
    """Pods to be near to, or away from."""

    topology_key: LabelKey
    label_selector: Annotated[dict[str, Any], Shape(LabelSelector)] | None = None
    namespace_selector: Annotated[dict[str, Any], Shape(LabelSelector)] | None = None
    namespaces: list[Name] | None = ItemList
    match_label_keys: list[LabelKey] | None = ItemList
    mismatch_label_keys: list[LabelKey] | None = ItemList


class PreferredPod(PodSection):
    """A preferred term."""

    weight: int = Field(ge=1, le=100)
    pod_affinity_term: Annotated[dict[str, Any], Shape(PodAffinityTerm)]


class PodAffinity(PodSection):
    """Affinity or anti-affinity to pods."""

    required_during_scheduling_ignored_during_execution: (
        list[Annotated[dict[str, Any], Shape(PodAffinityTerm)]] | None
    ) = ItemList
    preferred_during_scheduling_ignored_during_execution: (
        list[Annotated[dict[str, Any], Shape(PreferredPod)]] | None
    ) = ItemList


class Affinity(PodSection):
    """Affinity to nodes and pods."""

    node_affinity: Annotated[dict[str, Any], Shape(NodeAffinity)] | None = None
    pod_affinity: Annotated[dict[str, Any], Shape(PodAffinity)] | None = None
    pod_anti_affinity: Annotated[dict[str, Any], Shape(PodAffinity)] | None = None


class TopologySpread(PodSection):
    """Spreads pods over nodes or zones."""

    max_skew: int = Field(ge=1, le=2**31 - 1)
    topology_key: LabelKey
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: Annotated[dict[str, Any], Shape(LabelSelector)] | None = None
    match_label_keys: list[LabelKey] | None = ItemList
    min_domains: int | None = Field(None, ge=1, le=2**31 - 1)
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    node_taints_policy: Literal["Honor", "Ignore"] | None = None


class VolumeMount(PodSection):
    """Where a volume is mounted."""

    name: Name
    mount_path: Path
    sub_path: Path | None = None
    sub_path_expr: Path | None = None
    read_only: bool | None = None
    recursive_read_only: Literal["Disabled", "IfPossible", "Enabled"] | None = None
    mount_propagation: Literal["None", "HostToContainer", "Bidirectional"] | None = None


class IPBlock(PodSection):
    """A range of IP addresses."""

    cidr: Annotated[str, Field(min_length=1, max_length=49)]
    except_: list[Annotated[str, Field(min_length=1, max_length=49)]] | None = Field(
        None, max_length=64, alias="except"
    )


class NetworkPeer(PodSection):
    """A peer of a NetworkPolicy."""

    pod_selector: Annotated[dict[str, Any], Shape(LabelSelector)] | None = None
    namespace_selector: Annotated[dict[str, Any], Shape(LabelSelector)] | None = None
    ip_block: Annotated[dict[str, Any], Shape(IPBlock)] | None = None
