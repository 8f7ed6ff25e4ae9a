"""Settings that name a model, tokenizer or data set: a local path, or a repository on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

# As huggingface_hub's validate_repo_id: name or owner/name.
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)


def is_local_path(text: str) -> bool:
    """Whether ``text`` names a file or directory, existing or not, rather than ``name`` or ``owner/name`` on the hub.

    Local are: what exists; ``/x``, ``./x``, ``../x``, ``~/x``; what is not a valid hub name (``a/b/c``); and ``a/b``
    where ``a`` is a directory here, so that ``runs/missing`` is a missing file rather than a request to the hub.
    """
    path = Path(expand_home(text))
    if not _HUB_NAME.fullmatch(text) or path.exists():
        return True
    return len(path.parts) > 1 and path.parent.is_dir()


def expand_home(text: str) -> str:
    """``~/x`` and ``~user/x`` with the home directory of this machine; any other text unchanged."""
    return os.path.expanduser(text)
