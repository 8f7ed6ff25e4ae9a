"""A codec gives what its tokenizer gives, whichever of the two ways it takes."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from areal_trainer.data.tokenizer import Codec


def words(kind=PreTrainedTokenizerFast, **settings):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return kind(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="b", **settings)


TINY = Path(__file__).parents[4] / "examples" / "tiny" / "model"


class Shouting(PreTrainedTokenizerFast):
    def _decode(self, *arguments, **settings):
        return super()._decode(*arguments, **settings).upper()

    def _encode_plus(self, text, *arguments, **settings):
        return super()._encode_plus(text.lower(), *arguments, **settings)


TOKENIZERS = {
    "words": words(),
    "words that are cleaned up": words(clean_up_tokenization_spaces=True),
    "special tokens split": words(split_special_tokens=True),
    "own methods": words(Shouting),
    "the tiny example's": AutoTokenizer.from_pretrained(TINY),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["a b a", "B <s> a .", "", "12 + 3"])
def test_a_codec_gives_the_same_ids_and_texts_as_its_tokenizer(name, text):
    tokenizer = TOKENIZERS[name]
    codec = Codec(tokenizer)
    for special in (True, False):
        ids = codec.encode(text, add_special_tokens=special)
        assert ids == tokenizer.encode(text, add_special_tokens=special)
        assert codec.decode([ids, ids[:1]], skip_special_tokens=special) == [
            tokenizer.decode(ids, skip_special_tokens=special),
            tokenizer.decode(ids[:1], skip_special_tokens=special),
        ]


def test_padding_that_another_call_left_in_the_tokenizer_does_not_reach_a_prompt():
    tokenizer = words(pad_token="<unk>")
    codec = Codec(tokenizer)
    tokenizer(["a", "a b a"], padding="max_length", max_length=6)
    assert codec.encode("a b") == [1, 2, 3]
