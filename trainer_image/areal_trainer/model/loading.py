"""Loads a transformers model: as a whole, or each rank its part of every tensor."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from areal_api.sizing.trained_types import LOGIT_CHANGES, NOT_COMPUTED
from areal_trainer.model.model_files import ModelFiles, UnreadableFilesError
from areal_trainer.ranks import Ranks

logger = logging.getLogger(__name__)


def load(
    path: str, *, section: str, implementation: str, packed: bool, dtype: torch.dtype, in_parts: bool
) -> tuple[PreTrainedModel, ModelFiles | None]:
    """The model at ``path``, and with ``in_parts`` the files that its parameters have yet to be read from.

    If their tensors are not those of the model, the files are None, and only the model of rank 0 has its parameters.
    Collective with ``in_parts``. ``packed``: ``implementation`` has to be one that the model lets be replaced.
    Raises ``ValueError``, naming ``section``, for a model that cannot be loaded or trained.
    """
    files = None
    try:
        config = AutoConfig.from_pretrained(path)
        try:
            if in_parts:
                model = _empty(config, dtype, implementation)
                files = _readable_files(path, model)
                if files is None and Ranks.current().is_first:
                    model = _whole(path, config, dtype, implementation)
            else:
                model = _whole(path, config, dtype, implementation)
        except KeyError as error:
            if error.args != (implementation,):
                raise
            model = None  # it looks implementations up in its own table
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{section}.path is {path!r}, but no model can be loaded from it: {reason}") from error
    if packed and (model is None or not model._supports_attention_backend):
        kind = config.model_type if model is None else type(model).__name__
        raise ValueError(f"{section}.path: {kind} implements its own attention; set {section}.attn_impl: eager")
    assert model is not None
    _check_logits(model, section)
    return model, files


def generation_config(path: str) -> bytes | None:
    """The model's generation_config.json, if it has one."""
    file = cached_file(path, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    return None if file is None else Path(file).read_bytes()


def longest_exact(config: PretrainedConfig) -> int | None:
    """Tokens up to which rotary embeddings do not depend on the longest sequence of a pass; None without a limit."""
    text = config.get_text_config()
    found = getattr(text, "rope_parameters", None) or {}
    limits: list[int] = []
    for rope in (found, *found.values()):  # of all layers, or by type of layer
        if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
            limits.append(int(rope.get("original_max_position_embeddings") or text.max_position_embeddings))
    return min(limits, default=None)


def _whole(path: str, config: PretrainedConfig, dtype: torch.dtype, implementation: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        generation_config=GenerationConfig(),  # the trainer does not generate; see LanguageModel.save_config
        dtype=dtype,
        attn_implementation=implementation,
    )
    return model


def _empty(config: PretrainedConfig, dtype: torch.dtype, implementation: str) -> PreTrainedModel:
    """The model with undefined parameters, which take no memory until something is written to them."""
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=implementation
        )
    model.tie_weights()
    return model


def _readable_files(path: str, model: PreTrainedModel) -> ModelFiles | None:
    """The files of ``model`` if every rank can read its part of them. Collective."""
    files, ranks = None, Ranks.current()
    try:
        files = ModelFiles(path, model)
    except UnreadableFilesError as error:
        logger.info("rank 0 loads %s as a whole: %s", path, error)
    if ranks.any(files is None):
        return None
    assert files is not None
    parameters = sum(math.prod(parameter.shape) for parameter in model.parameters())
    if ranks.is_first:
        logger.info("every rank reads its part of %d parameters from %s", parameters, path)
    return files


def _check_logits(model: PreTrainedModel, section: str) -> None:
    """Raise ``ValueError`` for a model that changes its logits in a way that the trainer does not compute."""
    head = model.get_output_embeddings()
    text = model.config.get_text_config()  # of a model with several parts
    changes = [key for key in LOGIT_CHANGES if getattr(text, key, None) not in (None, 1, 1.0)]
    if getattr(head, "bias", None) is not None or changes:
        what = ", ".join(changes) or "a bias of the output embedding"
        raise ValueError(f"{section}.path: {type(model).__name__} has {what}, {NOT_COMPUTED}")
