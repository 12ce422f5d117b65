"""Tensor parallelism, applied from outside the model: every layer's heads and columns divided over processes.

Built of megatron-core's layers (arXiv 1909.08053): what a block reads is copied to all, heads and MLP columns are worked
on apart, and what a block adds to the features is summed. The state belongs to heads, so that S and the convolution's tail
never cross processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sleeptrain.config.errors import UserError
from sleeptrain.model.config import Model
from sleeptrain.model.init import initial
from sleeptrain.model.language import IGNORED, LanguageModel
from sleeptrain.parallel import sequence
from sleeptrain.parallel.config import padded_vocab, tensor_obstacle
from sleeptrain.parallel.mesh import MeshAxis
from sleeptrain.parallel.tp_layout import COLUMNS, ROWS, TPLayout


class TensorParallelModel(LanguageModel):
    """One process's share of a language model. Parameter names are those of the whole model.

    With `share_tokens` the features between blocks are this process's slice of a window's tokens; windows must divide.
    """

    def __init__(self, config: Model, axis: MeshAxis, share_tokens: bool = False) -> None:
        assert config.vocab is not None
        if reason := tensor_obstacle(config, axis.size):
            raise UserError(f"mesh.tensor = {axis.size}: {reason}")
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in LanguageModel(config).named_parameters()}
        super().__init__(local_config(config, axis.size))
        self.shards = TPLayout(shapes, axis)
        self.vocab = config.vocab
        self.token_shards = axis.size if share_tokens else 1
        self._divide(config)

    def nll(self, h: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """As the whole model's, known or not; every process has all tokens' logits of its part of the vocabulary."""
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        weight = self.embed.weight if self.head is None else self.head.weight
        logits = F.linear(self._for_all(self.norm(h)), weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        real = self.vocab - self.shards.axis.rank * weight.shape[0]
        if real < weight.shape[0]:
            padding = torch.arange(weight.shape[0], device=h.device) >= real
            logits = logits.masked_fill(padding, float("-inf"))
        scored = targets != IGNORED
        loss = vocab_parallel_cross_entropy(logits, targets.where(scored, 0).contiguous())
        return loss.where(scored, 0)

    def relative_change(self, h: Tensor, before: Tensor) -> Tensor:
        """As the whole model's, of the whole window; a collective over the tensor axis where tokens are shared."""
        if self.token_shards == 1:
            return super().relative_change(h, before)
        change, size = sequence.full_norms(self.shards.axis, h - before, before)
        return (change / size.clamp_min(1e-12)).float()

    def initialise(self, seed: int, horizon: int) -> None:
        """Fill all parameters with this process's part of what the whole model starts from."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                whole = initial(name, self.shards.shapes[name], seed, self.config.init_std, horizon)
                parameter.copy_(self.shards.cut(name, whole))
                # DeepSpeed asks for this when it takes the norm of all gradients: others would be counted several times.
                parameter.tensor_model_parallel = self.shards.dim(name) is not None  # type: ignore[attr-defined]

    def finalize_grads(self, grad_of: Callable[[Tensor], Tensor]) -> None:
        """Complete the gradients of parameters of which every process saw a part only: its heads, or its tokens. A
        collective over the tensor axis."""
        partial = [p for name, p in self.named_parameters() if self.shards.partial(name, self.token_shards > 1)]
        found = [grad_of(p) for p in partial if p.requires_grad]
        if found:
            flat = torch.cat([total.flatten() for total in found])
            dist.all_reduce(flat, group=self.shards.axis.group)
            for total, part in zip(found, flat.split([t.numel() for t in found]), strict=True):
                total.copy_(part.view_as(total))

    def _for_all(self, x: Tensor) -> Tensor:
        """What a layer that is divided over processes reads, the same on all of them; in backward, a sum over them."""
        from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

        if self.token_shards > 1:
            return sequence.gather_tokens(x, self.shards.axis)
        return copy_to_tensor_model_parallel_region(x)

    def _divide(self, whole: Model) -> None:
        from megatron.core import ModelParallelConfig
        from megatron.core.tensor_parallel import (
            ColumnParallelLinear,
            RowParallelLinear,
            VocabParallelEmbedding,
        )

        size, sliced = self.shards.axis.size, self.token_shards > 1
        config = ModelParallelConfig(
            tensor_model_parallel_size=size, use_cpu_initialization=True, perform_initialization=False
        )
        common: dict[str, Any] = {"config": config, "init_method": nn.init.zeros_}
        scattered = common | {"config": replace(config, sequence_parallel=sliced)}

        def column(linear: nn.Linear) -> nn.Module:
            # What a block reads is brought to all, and its gradient summed, once for all its projections: below.
            made = ColumnParallelLinear(
                linear.in_features, linear.out_features * size, bias=False, disable_grad_reduce=True, **common
            )
            made.register_forward_hook(_drop_bias)
            return made

        def row(linear: nn.Linear) -> nn.Module:
            made = RowParallelLinear(
                linear.in_features * size, linear.out_features, bias=False, input_is_parallel=True, skip_bias_add=False, **scattered
            )  # fmt: skip
            if sliced:
                made.register_forward_pre_hook(lambda _, args: sequence.split_tokens(args[0], size))
            made.register_forward_hook(_drop_bias)
            return made

        def for_all(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return self._for_all(args[0]), *args[1:]

        for block in self.layers:
            for path in (*COLUMNS, *ROWS):
                owner, name = path.split(".")
                module = getattr(getattr(block, owner), name, None)
                if isinstance(module, nn.Linear):
                    setattr(getattr(block, owner), name, column(module) if path in COLUMNS else row(module))
            for part in (block.get_submodule("mixer"), block.get_submodule("mlp")):
                part.register_forward_pre_hook(for_all)
        assert whole.vocab is not None
        self.embed = VocabParallelEmbedding(
            padded_vocab(whole.vocab, size), whole.width, reduce_scatter_embeddings=sliced, **common
        )
        if sliced:
            # It exchanges the first two dimensions before it scatters the first one.
            self.embed.register_forward_pre_hook(lambda _, args: sequence.split_tokens(args[0], size).t())


def local_config(model: Model, size: int) -> Model:
    """The sizes of one process's share."""
    assert model.vocab is not None
    a, g = model.attention, model.deltanet
    return replace(
        model,
        attention=replace(a, heads=a.heads // size, kv_heads=a.kv_heads // size),
        deltanet=replace(g, key_heads=g.key_heads // size, value_heads=g.value_heads // size),
        mlp=replace(model.mlp, hidden=model.mlp.hidden // size),
        vocab=padded_vocab(model.vocab, size) // size,
    )


def _drop_bias(_: nn.Module, args: Any, outputs: tuple[Tensor, Any]) -> Tensor:
    """megatron-core's layers return a bias apart, even where there is none."""
    return outputs[0]
