"""``spec.code``: a user's Python code for the trainer, without an image built for it. ``user_code/`` acts on it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from areal_api.pod_fields import Name
from areal_api.section import CamelSection

MAX_REQUIREMENTS = 64
SOURCE, PACKAGES = "source", "packages"  # in the folder that user_code.prepare fills
PATH = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$"  # relative; no part begins with a dot
COMMIT = r"^[0-9a-f]{40}$"
SHA256 = r"^[0-9a-f]{64}$"
CodePath = Annotated[str, Field(min_length=1, max_length=1024, pattern=PATH)]
# A requirement of PEP 508. It begins with a name, so that none is an option of pip.
Requirement = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9][^\x00-\x1f]*$")]


def _full_commit(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(COMMIT, value):
        raise ValueError(
            f"{value[:80]!r} is no full SHA-1; give the 40 lower-case hexadecimal digits that git rev-parse prints"
        )
    return value


class GitCode(CamelSection):
    """A commit of a Git repository."""

    url: str = Field(
        min_length=1,
        max_length=2048,
        pattern=r"^https?://[^\x00-\x20@]+$",
        description="URL of the repository, https:// or http://. Credentials are AREAL_GIT_USERNAME and "
        "AREAL_GIT_PASSWORD in trainer.env.",
    )
    commit: Annotated[str, BeforeValidator(_full_commit)] = Field(
        pattern=COMMIT,
        description="Full SHA-1 of the commit, 40 lower-case hexadecimal digits: a branch or tag could change.",
    )
    path: CodePath | None = Field(None, description="Folder of the repository to use; null is all of it.")


class CodeArchive(CamelSection):
    """A packed directory. grpo run --on kubernetes writes this section."""

    config_map: Name | None = Field(
        None, description="ConfigMap of the namespace that contains the archive; null is code/ of storage.bucket."
    )
    sha256: str = Field(pattern=SHA256, description="SHA-256 of the archive before its compression, hexadecimal.")


class CodeSpec(CamelSection):
    """Python code that is added to the PYTHONPATH of the trainer, and of agents and tools with code: true; and packages
    that it needs."""

    directory: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Directory on the machine where grpo run is called, which packs it; kubectl apply refuses it.",
    )
    git: GitCode | None = Field(None, description="A commit of a Git repository.")
    archive: CodeArchive | None = Field(None, description="What grpo run made of directory; only in Kubernetes.")
    requirements: list[Requirement] = Field(
        default_factory=list,
        max_length=MAX_REQUIREMENTS,
        description="Packages that the code needs besides those of the trainer's environment, as in requirements.txt. "
        "pip installs them; variables such as PIP_INDEX_URL in trainer.env configure it.",
    )
    requirements_file: CodePath | None = Field(
        None, description="A requirements.txt within the code, in addition to requirements; null is none."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [name for name in ("directory", "git", "archive") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"code.{sources[0]} and code.{sources[1]} are both set; keep one of them")
        if self.requirements_file is not None and not sources:
            raise ValueError(
                f"code.requirementsFile is {self.requirements_file}, but there is no code that contains it; set "
                "code.directory or code.git"
            )
        return self

    @property
    def has_source(self) -> bool:
        """Whether there is code, and not only packages."""
        return self.directory is not None or self.git is not None or self.archive is not None

    @property
    def is_used(self) -> bool:
        """Whether anything must be prepared before the trainer starts."""
        return self.has_source or bool(self.requirements)

    @property
    def needs_packages(self) -> bool:
        """Whether packages must be installed."""
        return bool(self.requirements) or self.requirements_file is not None

    @property
    def needs_network(self) -> bool:
        """Whether pods must fetch the code or its packages: unlike that of a ConfigMap, which the kubelet mounts."""
        in_bucket = self.archive is not None and self.archive.config_map is None
        return self.git is not None or in_bucket or self.needs_packages

    @property
    def identity(self) -> str:
        """What runs, for people: the commit or the digest of the archive, and a digest of the requirements."""
        parts: list[str] = []
        if self.git is not None:
            parts.append(f"commit {self.git.commit}" + (f" {self.git.path}" if self.git.path else ""))
        if self.archive is not None:
            parts.append(f"sha256:{self.archive.sha256}")
        if self.requirements:
            parts.append(f"requirements sha256:{digest_of(self.requirements)[:12]}")
        return ", ".join(parts)


def digest_of(lines: list[str]) -> str:
    """Hexadecimal SHA-256 of a list of texts."""
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()
