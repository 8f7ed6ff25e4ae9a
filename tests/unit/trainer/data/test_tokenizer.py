"""A codec returns what its tokenizer returns, on the direct and on the wrapped path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from areal_trainer.data.tokenizer import Codec, TokenTexts, load_hf_tokenizer, require_chat_template
from support.word_tokenizer import word_tokenizer


def words(kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast, **settings: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return kind(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="b", **settings)


TINY = Path(__file__).parents[4] / "examples" / "tiny" / "model"


class Shouting(PreTrainedTokenizerFast):
    """Overrides what the codec would bypass."""

    def _decode(self, *arguments: Any, **settings: Any) -> Any:
        return super()._decode(*arguments, **settings).upper()

    def _encode_plus(self, text: str, *arguments: Any, **settings: Any) -> Any:
        return super()._encode_plus(text.lower(), *arguments, **settings)


TOKENIZERS = {
    "words": words(),
    "spaces cleaned up": words(clean_up_tokenization_spaces=True),
    "special tokens split": words(split_special_tokens=True),
    "overridden methods": words(Shouting),
    "tiny example": AutoTokenizer.from_pretrained(TINY),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["a b a", "B <s> a .", "", "12 + 3"])
def test_codec_returns_the_ids_and_texts_of_its_tokenizer(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    codec = Codec(tokenizer)
    for special in (True, False):
        ids = codec.encode(text, add_special_tokens=special)
        assert ids == tokenizer.encode(text, add_special_tokens=special)
        assert codec.decode([ids, ids[:1]], skip_special_tokens=special) == [
            tokenizer.decode(ids, skip_special_tokens=special),
            tokenizer.decode(ids[:1], skip_special_tokens=special),
        ]


def test_padding_set_by_another_call_does_not_affect_prompts() -> None:
    tokenizer = words(pad_token="<unk>")
    codec = Codec(tokenizer)
    tokenizer(["a", "a b a"], padding="max_length", max_length=6)
    assert codec.encode("a b") == [1, 2, 3]


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        load_hf_tokenizer(str(tmp_path / "missing"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no tokenizer that transformers can read; it contains notes\.txt"):
        load_hf_tokenizer(str(tmp_path))


def test_missing_padding_token_defaults_to_the_eos_token(tmp_path: Path) -> None:
    word_tokenizer().save_pretrained(tmp_path)
    assert load_hf_tokenizer(str(tmp_path)).pad_token == "<end>"


def test_misspelt_directory_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such directory"):
        load_hf_tokenizer("models/tiny")


def test_tokenizer_without_chat_template_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"no chat template.* set valid_dataset\.apply_chat_template=false"):
        require_chat_template(word_tokenizer(chat_template=None), section="valid_dataset")


def test_the_text_of_tokens_keeps_leading_spaces_and_special_tokens() -> None:
    tokenizer = load_hf_tokenizer(str(TINY))
    texts = TokenTexts(tokenizer)
    ids = Codec(tokenizer).encode("<|user|> Tom has 3 apples", add_special_tokens=False)
    assert "".join(texts(ids)).lstrip() == "<|user|> Tom has 3 apples"
    assert texts(ids[::-1]) == texts(ids)[::-1]
    assert texts([]) == []
