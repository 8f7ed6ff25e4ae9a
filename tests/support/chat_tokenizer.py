"""A tokenizer with one token per character or special token, and a chat template like Qwen's."""

from __future__ import annotations

import json
import re
from typing import Any

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
PAD, START, END = range(3)
_PIECE = re.compile("|".join(map(re.escape, SPECIAL)) + "|.", re.DOTALL)


class ChatTokenizer:
    """IDs below 3 are special tokens; 3 + n is the character with code point n."""

    eos_token_id = END
    pad_token_id = PAD

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [SPECIAL.index(p) if p in SPECIAL else len(SPECIAL) + ord(p) for p in _PIECE.findall(text)]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        kept = (token for token in ids if not (skip_special_tokens and token < len(SPECIAL)))
        return "".join(SPECIAL[token] if token < len(SPECIAL) else chr(token - len(SPECIAL)) for token in kept)

    def apply_chat_template(
        self, messages: list[dict[str, Any]], *, tools: Any = None, tokenize: bool, **_: Any
    ) -> str:
        """Strips assistant messages, and renders tool calls differently than the model writes them."""
        assert not tokenize
        parts = [f"<|im_start|>tools\n{json.dumps(tools)}<|im_end|>\n"] if tools else []
        for message in messages:
            content = message["content"].strip() if message["role"] == "assistant" else message["content"]
            calls = "".join(f"<call {call['function']['name']}>" for call in message.get("tool_calls", ()))
            parts.append(f"<|im_start|>{message['role']}\n{content}{calls}<|im_end|>\n")
        return "".join(parts) + "<|im_start|>assistant\n"
