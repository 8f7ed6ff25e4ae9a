"""Volumes that an experiment may add to its pods, as in Kubernetes' core/v1. The chart's policy restricts the types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from areal_api.pod_fields import (
    FieldRef,
    ItemList,
    Labels,
    LabelSelector,
    Mode,
    Name,
    Path,
    PodSection,
    Quantity,
    Reference,
    ResourceFieldRef,
    Resources,
    Shape,
)


class KeyToPath(PodSection):
    """A key and the file it becomes."""

    key: Name
    path: Path
    mode: Mode | None = None


class ConfigMapVolume(PodSection):
    """Files from a ConfigMap."""

    name: Name
    items: list[Annotated[dict[str, Any], Shape(KeyToPath)]] | None = ItemList
    default_mode: Mode | None = None
    optional: bool | None = None


class SecretVolume(PodSection):
    """Files from a Secret."""

    secret_name: Name
    items: list[Annotated[dict[str, Any], Shape(KeyToPath)]] | None = ItemList
    default_mode: Mode | None = None
    optional: bool | None = None


class EmptyDir(PodSection):
    """An empty directory."""

    medium: Literal["", "Memory", "HugePages", "HugePages-2Mi", "HugePages-1Gi"] | None = None
    size_limit: Quantity | None = None


class ClaimVolume(PodSection):
    """A volume claim."""

    claim_name: Name
    read_only: bool | None = None


class DownwardFile(PodSection):
    """A file with a field of the pod."""

    path: Path
    field_ref: Annotated[dict[str, Any], Shape(FieldRef)] | None = None
    resource_field_ref: Annotated[dict[str, Any], Shape(ResourceFieldRef)] | None = None
    mode: Mode | None = None


class DownwardVolume(PodSection):
    """Files with fields of the pod."""

    items: list[Annotated[dict[str, Any], Shape(DownwardFile)]] | None = ItemList
    default_mode: Mode | None = None


class ProjectedKeys(PodSection):
    """Keys of a ConfigMap or Secret, in a projected volume."""

    name: Name
    items: list[Annotated[dict[str, Any], Shape(KeyToPath)]] | None = ItemList
    optional: bool | None = None


class ProjectedToken(PodSection):
    """A token of the pod's service account."""

    path: Path
    audience: Name | None = None
    expiration_seconds: int | None = Field(None, ge=600, le=2**32)


class TrustBundle(PodSection):
    """Certificates of a ClusterTrustBundle."""

    path: Path
    name: Name | None = None
    signer_name: Name | None = None
    label_selector: Annotated[dict[str, Any], Shape(LabelSelector)] | None = None
    optional: bool | None = None


class ProjectedSource(PodSection):
    """One source of a projected volume."""

    config_map: Annotated[dict[str, Any], Shape(ProjectedKeys)] | None = None
    secret: Annotated[dict[str, Any], Shape(ProjectedKeys)] | None = None
    downward_api: Annotated[dict[str, Any], Shape(DownwardVolume)] | None = Field(None, alias="downwardAPI")
    service_account_token: Annotated[dict[str, Any], Shape(ProjectedToken)] | None = None
    cluster_trust_bundle: Annotated[dict[str, Any], Shape(TrustBundle)] | None = None


class ProjectedVolume(PodSection):
    """Files from several sources."""

    sources: list[Annotated[dict[str, Any], Shape(ProjectedSource)]] | None = ItemList
    default_mode: Mode | None = None


class TypedReference(PodSection):
    """An object to copy a volume from."""

    kind: Name
    name: Name
    api_group: Name | None = None
    namespace: Name | None = None


class ClaimSpec(PodSection):
    """Specification of a volume claim."""

    access_modes: list[Name] | None = Field(None, max_length=4)
    resources: Annotated[dict[str, Any], Shape(Resources)] | None = None
    storage_class_name: Name | None = None
    volume_mode: Literal["Filesystem", "Block"] | None = None
    volume_name: Name | None = None
    volume_attributes_class_name: Name | None = None
    selector: Annotated[dict[str, Any], Shape(LabelSelector)] | None = None
    data_source: Annotated[dict[str, Any], Shape(TypedReference)] | None = None
    data_source_ref: Annotated[dict[str, Any], Shape(TypedReference)] | None = None


class ClaimMetadata(PodSection):
    """Metadata of a volume claim."""

    labels: Labels | None = None
    annotations: dict[Name, str] | None = Field(None, max_length=64)


class ClaimTemplate(PodSection):
    """A claim to create for each pod."""

    spec: Annotated[dict[str, Any], Shape(ClaimSpec)]
    metadata: Annotated[dict[str, Any], Shape(ClaimMetadata)] | None = None


class Ephemeral(PodSection):
    """A volume that lives as long as its pod."""

    volume_claim_template: Annotated[dict[str, Any], Shape(ClaimTemplate)] | None = None


class CsiVolume(PodSection):
    """A volume of a CSI driver."""

    driver: Name
    read_only: bool | None = None
    fs_type: Name | None = None
    volume_attributes: dict[Name, Path] | None = Field(None, max_length=64)
    node_publish_secret_ref: Annotated[dict[str, Any], Shape(Reference)] | None = None


class NfsVolume(PodSection):
    """A directory of an NFS server."""

    server: Name
    path: Path
    read_only: bool | None = None


class HostPath(PodSection):
    """A path of the node."""

    path: Path
    type: Name | None = None


class ImageVolume(PodSection):
    """The content of an image."""

    reference: Path
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None


class Volume(PodSection):
    """A volume: a name and one type."""

    name: Name
    empty_dir: Annotated[dict[str, Any], Shape(EmptyDir)] | None = None
    config_map: Annotated[dict[str, Any], Shape(ConfigMapVolume)] | None = None
    secret: Annotated[dict[str, Any], Shape(SecretVolume)] | None = None
    persistent_volume_claim: Annotated[dict[str, Any], Shape(ClaimVolume)] | None = None
    projected: Annotated[dict[str, Any], Shape(ProjectedVolume)] | None = None
    downward_api: Annotated[dict[str, Any], Shape(DownwardVolume)] | None = Field(None, alias="downwardAPI")
    ephemeral: Annotated[dict[str, Any], Shape(Ephemeral)] | None = None
    csi: Annotated[dict[str, Any], Shape(CsiVolume)] | None = None
    nfs: Annotated[dict[str, Any], Shape(NfsVolume)] | None = None
    host_path: Annotated[dict[str, Any], Shape(HostPath)] | None = None
    image: Annotated[dict[str, Any], Shape(ImageVolume)] | None = None
