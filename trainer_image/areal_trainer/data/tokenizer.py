"""The tokenizer of a model, and its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend

from areal_trainer.import_path import names_a_file

Message = dict[str, Any]


def load_hf_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer at ``path``, hub name or directory; one without a padding token pads with its end token.

    Raises ``ValueError`` that names ``path`` where there is none.
    """
    directory = Path(path)
    if not directory.is_dir() and names_a_file(path):
        raise ValueError(
            f"tokenizer {path!r}: there is no such directory; set tokenizer_path (or actor.path) to a model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"tokenizer {path!r}: {_why(directory)} ({_first_line(error)})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``ValueError`` where ``tokenizer`` cannot render messages."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template, so messages cannot become a prompt; set "
            "tokenizer_path to that of an instruction-tuned model, or put a chat_template into tokenizer_config.json"
        )


def prompt_lengths(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[int]:
    """Tokens of each conversation as a prompt: the chat template with the opening of the answer."""
    rendered = tokenizer.apply_chat_template(
        [list(messages) for messages in conversations], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return [len(ids) for ids in rendered["input_ids"]]


class Codec:
    """Text to token ids and back as the tokenizer does it: by its backend where it adds nothing of its own but time."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        kind = type(tokenizer)
        plain = isinstance(tokenizer, TokenizersBackend)
        self._encodes_plainly = (
            plain and _inherits(kind, "encode", "_encode_plus") and not tokenizer.split_special_tokens
        )
        self._decodes_plainly = (
            plain and _inherits(kind, "decode", "_decode") and not tokenizer.clean_up_tokenization_spaces
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``."""
        if self._encodes_plainly:
            backend = self._tokenizer.backend_tokenizer
            # A call with other wishes, anywhere in the process, leaves them in the backend.
            if backend.truncation is None and backend.padding is None and not backend.encode_special_tokens:
                ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
                return ids
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, answers: Sequence[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each of ``answers``."""
        decode = (self._tokenizer.backend_tokenizer if self._decodes_plainly else self._tokenizer).decode
        return [decode(answer, skip_special_tokens=skip_special_tokens) for answer in answers]


def _inherits(kind: type, *methods: str) -> bool:
    """Whether ``kind`` leaves ``methods`` as ``TokenizersBackend`` has them."""
    return all(getattr(kind, method) is getattr(TokenizersBackend, method) for method in methods)


def _why(directory: Path) -> str:
    if not directory.is_dir():
        return "there is no such directory, and the hub has no such model or cannot be reached"
    files = ", ".join(sorted(entry.name for entry in directory.iterdir())[:12]) or "nothing"
    return f"the directory holds no tokenizer that transformers can read; it holds {files}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
