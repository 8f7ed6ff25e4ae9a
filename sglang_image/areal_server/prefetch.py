"""``python -m areal_server.prefetch FOLDER MODEL…``: downloads models of the Hugging Face hub into a shared cache.

The init container of a server runs it before the server, which then only reads the cache. A model that the cache holds
already is used when the hub cannot be reached. Servers that download one model at a time wait for each other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from areal_api.paths import is_local_path
from areal_api.termination import failed

KEY = "servers.modelCache"
# What servers do not load: the same weights in other formats.
OTHER_FORMATS = ("*.bin", "*.pth", "*.pt", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "original/*", "onnx/*")


def prefetch(folder: Path, models: Sequence[str]) -> None:
    """Download what ``folder`` lacks. Raises ``ValueError`` for a model that does not exist, else ``OSError``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    for model in models:
        if is_local_path(model):
            continue
        try:
            snapshot_download(model, cache_dir=folder, ignore_patterns=list(OTHER_FORMATS))
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"{KEY}: the hub has no model {model}, or it needs a token; correct the name, or set HF_TOKEN in "
                "servers.env"
            ) from error
        except (LocalEntryNotFoundError, HfHubHTTPError) as error:
            raise OSError(f"{KEY}: {model} cannot be downloaded: {_one_line(error)}") from error


def main(arguments: Sequence[str]) -> int:
    """The exit status: 2 for what a retry cannot change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    given = parser.parse_args(arguments)
    try:
        prefetch(given.folder, given.models)
    except ValueError as error:
        return failed(error, final=True)
    except OSError as error:
        return failed(error, final=False)
    return 0


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
