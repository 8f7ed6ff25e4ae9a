"""Loading tokenizers, rendering chat templates, encoding and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend

from areal_api.paths import is_local_path

Message = dict[str, Any]


def load_hf_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer at ``path``, a hub name or a directory. Without a padding token, it pads with the EOS token.

    Raises ``ValueError`` naming ``path`` if it cannot be loaded.
    """
    directory = Path(path)
    if not directory.is_dir() and is_local_path(path):
        raise ValueError(f"tokenizer {path!r}: no such directory; set tokenizer_path (or actor.path) to a model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"tokenizer {path!r}: {_load_failure(directory)} ({_first_line(error)})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def require_chat_template(tokenizer: PreTrainedTokenizerBase, *, section: str) -> None:
    """Raise ``ValueError`` if ``tokenizer`` has no chat template for the rows of ``section``."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template to render messages; for plain prompts set "
            f"{section}.apply_chat_template=false, or set tokenizer_path to the tokenizer of an instruction-tuned model"
        )


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, tools: Any = None, **template_kwargs: Any
) -> str:
    """The prompt text of ``messages``, including special tokens and the generation prompt.

    Every prompt is rendered here: those that are trained and those that ``max_length`` measures. Encode the text
    without adding special tokens. Raises ``ValueError`` if the chat template rejects the messages.
    """
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=True, **template_kwargs
        )
    except (TemplateError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"the chat template failed with {type(error).__name__}: {_first_line(error)}") from error
    return text


class Codec:
    """Encodes and decodes like the tokenizer, calling its Rust backend directly where the wrapper only adds cost."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        kind = type(tokenizer)
        has_backend = isinstance(tokenizer, TokenizersBackend)
        self._encodes_directly = (
            has_backend and _inherits(kind, "encode", "_encode_plus") and not tokenizer.split_special_tokens
        )
        self._decodes_directly = (
            has_backend and _inherits(kind, "decode", "_decode") and not tokenizer.clean_up_tokenization_spaces
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``."""
        if self._encodes_directly:
            backend = self._tokenizer.backend_tokenizer
            # Truncation and padding set by any other caller persist in the shared backend.
            if backend.truncation is None and backend.padding is None and not backend.encode_special_tokens:
                ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
                return ids
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, completions: Sequence[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each of ``completions``."""
        decode = (self._tokenizer.backend_tokenizer if self._decodes_directly else self._tokenizer).decode
        return [decode(ids, skip_special_tokens=skip_special_tokens) for ids in completions]


class TokenTexts:
    """The text of single tokens as they read after other text, so with the space that some begin with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._codec = Codec(tokenizer)
        self._before = self._codec.encode("a", add_special_tokens=False)
        self._known: dict[int, str] = {}

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each id, each by itself: � for part of a character."""
        new = [token_id for token_id in token_ids if token_id not in self._known]
        before, *texts = self._codec.decode(
            [self._before, *([*self._before, token_id] for token_id in new)], skip_special_tokens=False
        )
        self._known |= {token_id: text.removeprefix(before) for token_id, text in zip(new, texts, strict=True)}
        return [self._known[token_id] for token_id in token_ids]


def _inherits(kind: type, *methods: str) -> bool:
    """Whether ``kind`` does not override ``methods`` of ``TokenizersBackend``."""
    return all(getattr(kind, method) is getattr(TokenizersBackend, method) for method in methods)


def _load_failure(directory: Path) -> str:
    if not directory.is_dir():
        return "no such directory, and the hub has no such model or cannot be reached"
    files = ", ".join(sorted(entry.name for entry in directory.iterdir())[:12]) or "nothing"
    return f"the directory has no tokenizer that transformers can read; it contains {files}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
