"""Translation of SGLang's JSON."""

import pytest

from areal_trainer.servers.generation import (
    Completion,
    FinishReason,
    MetaInfo,
    PartialCompletion,
    Span,
    TokenLogprob,
    WrongVersionError,
)


@pytest.mark.parametrize("version", ["v2", "v5", "default"])
def test_tokens_of_another_version_are_refused(version):
    meta = MetaInfo(
        FinishReason("stop"), weight_versions=[Span(version, 0, 1)], output_token_logprobs=[TokenLogprob(-1.0, 7)]
    )
    with pytest.raises(WrongVersionError, match=f"it reports '{version}', not v3 … v4"):
        PartialCompletion.from_server(Completion(meta), oldest=3, newest=4, limit=9)
