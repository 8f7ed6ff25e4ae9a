"""A tokenizer with one token per word; its generation prompt is one token."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<say>{% endif %}"


def word_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Every ordinary word is unknown, so lengths are meaningful but IDs are not."""
    tokenizer = Tokenizer(models.WordLevel({"<unknown>": 0, "<end>": 1, "<say>": 2}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unknown>", eos_token="<end>", chat_template=chat_template
    )
