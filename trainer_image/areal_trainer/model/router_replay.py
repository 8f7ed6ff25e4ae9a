"""Router replay: routers use the experts that servers chose for each token, weighted by their own probabilities.

Servers and trainer round differently, so their routers can choose different experts for a token, and then its log-probs
differ by far more than rounding. R3 (https://arxiv.org/abs/2510.11370) replays the servers' choices.
"""

# P tokens of a pass, E experts of a layer, K chosen, L layers with experts, H hidden size

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from areal_trainer.model.experts import chosen_experts, expert_count, routers
from areal_trainer.ranks import Ranks
from areal_trainer.routing import Routing
from areal_trainer.trajectory import Trajectory

REPLACED = "experts_replaced"
_LAYER = re.compile(r"\blayers\.(\d+)\.")


class RouterReplay:
    """Makes a model's routers take the experts passed to ``use``. Between ``use`` and the backward pass they must stay.

    Without experts routers choose as usual.
    """

    def __init__(self, model: PreTrainedModel, *, section: str) -> None:
        """Before sharding. Raises ``ValueError`` for a model whose routers cannot be replayed."""
        found = routers(model)
        self.routing = _routing(model, found, section=section)
        self._experts_PLK: Tensor | None = None
        self._counts = torch.zeros(2, dtype=torch.float64)  # choices replaced, and all
        for layer, router in enumerate(found):
            router.forward = self._replaying(router.forward, layer)  # type: ignore[method-assign]
        self._check(model, found, section=section)

    def use(self, experts_PLK: Tensor | None) -> None:
        """Take these experts for the P tokens of the next passes, −1 for a router's own; None: all their own."""
        self._experts_PLK = experts_PLK

    def check(self, trajectories: Sequence[Trajectory]) -> None:
        """Raise ``ValueError`` for a sample without experts of this model."""
        for trajectory in trajectories:
            shape = None if trajectory.experts is None else trajectory.experts.shape[1:]
            if shape != self.routing.shape and trajectory.loss_mask.any():
                raise ValueError(
                    f"a sample of task {trajectory.task_id!r} has experts of shape {shape} per token instead of "
                    f"{self.routing.shape}, and actor.router_replay trains with them; build it with "
                    "TrajectoryBuilder, and pass routing=policy.routing to RemoteSGLangEngine.initialize"
                )

    def take(self) -> dict[str, float]:
        """Since the last call: ``experts_replaced``, the share of replayed choices that the trainer's routers would
        not have made, in training passes. Collective."""
        replaced, total = Ranks.current().sum_over_all(self._counts.clone()).tolist()
        self._counts.zero_()
        return {REPLACED: replaced / total} if total else {}

    def _replaying(self, forward: Callable[..., Any], layer: int) -> Callable[..., Any]:
        def replayed(*args: Any, **kwargs: Any) -> Any:
            if self._experts_PLK is None:
                return forward(*args, **kwargs)
            with _Replay(self._experts_PLK[:, layer].long(), experts=self.routing.experts) as replay:
                result = forward(*args, **kwargs)
            if torch.is_grad_enabled():
                self._counts += replay.counts.cpu()
            return result

        return replayed

    def _check(self, model: nn.Module, found: list[nn.Module], *, section: str) -> None:
        """Replay the last experts of every router: it must use them."""
        experts, (layers, top_k) = self.routing.experts, self.routing.shape
        wanted_3K = torch.arange(experts - top_k, experts).expand(3, top_k)
        problem = ""
        for router in found:
            weight = router.weight
            assert isinstance(weight, Tensor)
            self.use(wanted_3K[:, None].expand(3, layers, top_k).to(weight.device))
            try:
                with torch.no_grad():
                    used = chosen_experts(router(weight.new_ones(3, weight.shape[1])))
                if not torch.equal(used.cpu(), wanted_3K):
                    problem = "ignore the experts they are given"
            except (TypeError, ValueError, RuntimeError) as error:
                problem = f"cannot be run alone ({error})"
            finally:
                self.use(None)
        if problem:
            raise ValueError(
                f"{section}.router_replay: the routers of {type(model).__name__} {problem}; set it to false"
            )


class _Replay(TorchFunctionMode):
    """Replaces the choice of ``torch.topk`` by given experts, with the values of the same tensor."""

    def __init__(self, experts_PK: Tensor, *, experts: int) -> None:
        super().__init__()
        self._experts = experts
        self._experts_PK = experts_PK
        self.counts = torch.zeros(2, dtype=torch.float64)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function not in (torch.topk, Tensor.topk):
            return result
        scores_PE, own_PK = args[0], result.indices
        if own_PK.shape != self._experts_PK.shape or scores_PE.shape[-1] != self._experts:
            return result  # of groups of experts
        given_PK = self._experts_PK >= 0
        experts_PK = torch.where(given_PK, self._experts_PK, own_PK)
        same_PK = (experts_PK[:, :, None] == own_PK[:, None, :]).any(-1)
        self.counts = torch.stack([(~same_PK).sum(), given_PK.sum()]).double()
        return torch.return_types.topk((scores_PE.gather(-1, experts_PK), experts_PK))


def _routing(model: PreTrainedModel, found: list[nn.Module], *, section: str) -> Routing:
    name, config = type(model).__name__, model.config.get_text_config()
    if not found:
        raise ValueError(f"{section}.router_replay is true, but {name} has no routers of experts; set it to false")
    of_module = {module: path for path, module in model.named_modules()}
    layers = [int(match[1]) for router in found if (match := _LAYER.search(of_module[router]))]
    counts = {expert_count(router) for router in found}
    top_k = getattr(config, "num_experts_per_tok", None)
    if len(set(layers)) < len(found) or len(counts) > 1 or top_k is None:
        raise ValueError(
            f"{section}.router_replay: {name} has several routers in a layer, layers with different numbers of "
            "experts, or no num_experts_per_tok, which SGLang needs to report the experts; set it to false"
        )
    return Routing(config.num_hidden_layers, tuple(layers), int(top_k), counts.pop())
