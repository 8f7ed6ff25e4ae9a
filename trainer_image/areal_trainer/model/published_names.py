"""Names and shapes of parameters in published files, where they differ from those in memory.

transformers keeps all experts of a layer in one tensor. Files have a matrix per expert, as servers read them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


class PublishedNames:
    """Converts one parameter at a time, so that only one is gathered."""

    def __init__(self, model: PreTrainedModel, *, section: str) -> None:
        """Raises ``ValueError``, naming ``section``, if a parameter's tensors depend on other parameters."""
        self._model = model
        self._converted: set[str] = set()
        parameters = {name: parameter.detach().to("meta") for name, parameter in model.named_parameters()}
        together = _shapes(revert_weight_conversion(model, dict(parameters)))
        if together.keys() == parameters.keys():
            return
        alone: dict[str, tuple[int, ...]] = {}
        for name, parameter in parameters.items():
            found = _shapes(revert_weight_conversion(model, {name: parameter}))
            if found.keys() != {name}:
                self._converted.add(name)
            alone |= found
        if alone != together:
            different = sorted(alone.keys() ^ together.keys()) or sorted(alone)
            raise ValueError(
                f"{section}.path: {type(model).__name__} has other tensor names in memory than in its checkpoint, and "
                f"{different[0]} is made of several, so servers cannot load its weights; choose another model"
            )

    def tensors(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the parameter ``name`` as files have them."""
        if name not in self._converted:
            yield name, tensor
            return
        for published, part in revert_weight_conversion(self._model, {name: tensor}).items():
            yield published, part.contiguous()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
