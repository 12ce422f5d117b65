"""Tensor parallelism of the language model: replaces its linear layers and embedding by megatron-core's (arXiv 1909.08053).

The input of a mixer or MLP is replicated (its gradient is all-reduced), heads and MLP columns are sharded, and the output is
all-reduced. Fast weights and convolution tails belong to heads, so that they are local to a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sleeptrain.errors import UserError
from sleeptrain.model.config import Model
from sleeptrain.model.init import fill, initial
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.scores import HeadScores, head_scores
from sleeptrain.parallel import sequence, traced_collectives
from sleeptrain.parallel.config import padded_vocab, tensor_obstacle, unsharded_options
from sleeptrain.parallel.mesh import MeshAxis
from sleeptrain.parallel.tp_layout import COLUMN_PARALLEL, ROW_PARALLEL, TPLayout
from sleeptrain.parallel.vocab_cross_entropy import vocab_parallel_nll


class TensorParallelModel(LanguageModel):
    """One process's shard of a language model; parameters have the names of the full model's.

    Under `sequence_parallel` the features between blocks are this process's slice of a window's tokens, so that the axis size
    must divide the window. Raises UserError if it does not divide the heads or the MLP width.
    """

    def __init__(
        self,
        config: Model,
        axis: MeshAxis,
        sequence_parallel: bool = False,
        *,
        gated: bool = False,
        traced: bool = False,
    ) -> None:
        """`traced`: torch.compile can trace the blocks; their layers are torch's then, and their collectives `traced_collectives`."""
        assert config.vocab is not None
        if reason := tensor_obstacle(config, axis.size):
            raise UserError(f"mesh.tensor = {axis.size}: {reason}")
        if axis.size > 1 and (options := unsharded_options(config)):
            raise UserError(f"mesh.tensor = {axis.size}: {' and '.join(options)} cannot be sharded; use mesh.tensor=1")
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in LanguageModel(config, gated=gated).named_parameters()}
        super().__init__(local_config(config, axis.size), gated=gated, seed=None)
        self.tp_layout = TPLayout(shapes, axis)
        self.vocab = config.vocab
        self.token_shards = axis.size if sequence_parallel else 1
        self._add_collectives() if traced else self._replace_layers()
        self._replace_embedding(config.vocab, config.width)

    def nll(self, h: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """As `LanguageModel.nll`, by `vocab_parallel_nll`, which computes no logits twice, so that `known` is not needed."""
        weight = self.embed.weight if self.head is None else self.head.weight
        x = self._replicate(self.norm(h))
        return vocab_parallel_nll(x, weight, targets, self.tp_layout.axis, self.vocab, self.z_loss)

    def scores(self, x: Tensor, targets: Tensor) -> HeadScores:
        """As `LanguageModel.scores`, from every process's shard of the vocabulary. A collective over the tensor axis."""
        axis, weight = self.tp_layout.axis, self.embed.weight if self.head is None else self.head.weight
        first = axis.rank * weight.shape[0]
        local = head_scores(
            self._replicate(x).flatten(0, -2), weight, targets.flatten(), first, rows=self.vocab - first
        )
        operations = {"max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN, "sum": dist.ReduceOp.SUM}

        def reduce(tensor: Tensor, operation: str) -> Tensor:
            dist.all_reduce(tensor := tensor.clone(), operations[operation], group=axis.group)
            return tensor

        return local.over_shards(reduce)

    def row_squares(self, change: Tensor, before: Tensor, valid: Tensor | None) -> Tensor:
        """As `LanguageModel.row_squares`, over all tokens; a collective over the tensor axis under sequence parallelism."""
        if self.token_shards == 1:
            return super().row_squares(change, before, valid)
        axis = self.tp_layout.axis
        local = None if valid is None else valid.unflatten(1, (axis.size, -1))[:, axis.rank]
        return sequence.sum_over_slices(super().row_squares(change, before, local), axis)

    def initialise(self, seed: int, horizon: int) -> None:
        """Fill all parameters with this process's shards of the full model's initial values."""
        layout, std = self.tp_layout, self.config.init_std
        fill(self, lambda name, _: layout.shard(name, initial(name, layout.shapes[name], seed, std, horizon)))
        for name, parameter in self.named_parameters():
            # DeepSpeed's gradient norm counts marked parameters on every process and the others on the first one only.
            parameter.tensor_model_parallel = layout.dim(name) is not None  # type: ignore[attr-defined]

    def partial_grads(self) -> list[nn.Parameter]:
        """As `LanguageModel.partial_grads`, with replicated parameters whose gradients are sums over heads or tokens."""
        return [*super().partial_grads(), *self._replicated_partial()]

    def complete_grads(self, grad_of: Callable[[Tensor], Tensor]) -> None:
        """All-reduce the gradients of replicated parameters that are partial sums over heads or tokens; a collective over the
        tensor axis. One all-reduce of their concatenation. `grad_of` returns the accumulated gradient of a parameter."""
        grads = [grad_of(p) for p in self._replicated_partial() if p.requires_grad]
        if grads:
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat, group=self.tp_layout.axis.group)
            for grad, reduced in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(reduced.view_as(grad))

    def _replicated_partial(self) -> list[nn.Parameter]:
        sequence_parallel = self.token_shards > 1
        return [p for name, p in self.named_parameters() if self.tp_layout.has_partial_grad(name, sequence_parallel)]

    def _replicate(self, x: Tensor) -> Tensor:
        """The input of a column-parallel layer on every process; backward sums its gradient over the tensor axis.

        Forward is the identity, or an all-gather of token slices under sequence parallelism."""
        from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

        if self.token_shards > 1:
            return sequence.gather_tokens(x, self.tp_layout.axis)
        return copy_to_tensor_model_parallel_region(x)

    def _add_collectives(self) -> None:
        """Collectives around the shards of projections, which are torch's linear layers of local sizes already."""
        # One hook for all blocks: those of a kind share their compiled graphs while their hooks are the same objects.
        group, sequence_parallel = self.tp_layout.axis.group, self.token_shards > 1
        into, out = (
            (traced_collectives.gather_tokens, traced_collectives.scatter_tokens)
            if sequence_parallel
            else (traced_collectives.replicate, traced_collectives.reduce)
        )

        def replicate_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return into(args[0], group), *args[1:]

        def reduce_output(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            return out(output, group)

        for _, _, module in self._sharded_layers(ROW_PARALLEL):
            module.register_forward_hook(reduce_output)
        self._before_sublayers(replicate_input)

    def _replace_layers(self) -> None:
        """Replace projections by megatron-core's layers, and replicate the inputs of mixers and MLPs."""
        from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

        size, sequence_parallel = self.tp_layout.axis.size, self.token_shards > 1
        common = self._megatron_options()
        row_common = common | {"config": replace(common["config"], sequence_parallel=sequence_parallel)}

        def column(linear: nn.Linear) -> nn.Module:
            # No reduction of the input's gradient here: `replicate_input` does it once for all projections of a block.
            parallel = ColumnParallelLinear(
                linear.in_features, linear.out_features * size, bias=False, disable_grad_reduce=True, **common
            )
            parallel.register_forward_hook(_drop_bias)
            return parallel

        def row(linear: nn.Linear) -> nn.Module:
            parallel = RowParallelLinear(
                linear.in_features * size, linear.out_features, bias=False, input_is_parallel=True, skip_bias_add=False, **row_common
            )  # fmt: skip
            if sequence_parallel:
                parallel.register_forward_pre_hook(lambda _, args: sequence.split_tokens(args[0], size))
            parallel.register_forward_hook(_drop_bias)
            return parallel

        def replicate_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return self._replicate(args[0]), *args[1:]

        for paths, parallel in ((COLUMN_PARALLEL, column), (ROW_PARALLEL, row)):
            for owner, name, module in self._sharded_layers(paths):
                setattr(owner, name, parallel(module))
        self._before_sublayers(replicate_input)

    def _sharded_layers(self, paths: Iterable[str]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
        """The linear layers of all blocks that are sharded as `paths` are, each with its owner and its name there."""
        for block in self.layers:
            for path in paths:
                owner, name = path.split(".")
                module = getattr(getattr(block, owner), name, None)
                if isinstance(module, nn.Linear):
                    yield getattr(block, owner), name, module

    def _before_sublayers(self, hook: Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]) -> None:
        for block in self.layers:
            for sublayer in (block.get_submodule("mixer"), block.get_submodule("mlp")):
                sublayer.register_forward_pre_hook(hook)

    def _replace_embedding(self, vocab: int, width: int) -> None:
        from megatron.core.tensor_parallel import VocabParallelEmbedding

        size, sequence_parallel = self.tp_layout.axis.size, self.token_shards > 1
        self.embed = VocabParallelEmbedding(
            padded_vocab(vocab, size), width, reduce_scatter_embeddings=sequence_parallel, **self._megatron_options()
        )
        if sequence_parallel:
            # VocabParallelEmbedding transposes the first two dimensions before it scatters dimension 0.
            self.embed.register_forward_pre_hook(lambda _, args: sequence.split_tokens(args[0], size).t())

    def _megatron_options(self) -> dict[str, Any]:
        """The arguments that all layers of megatron-core take."""
        from megatron.core import ModelParallelConfig

        config = ModelParallelConfig(
            tensor_model_parallel_size=self.tp_layout.axis.size,
            use_cpu_initialization=True,
            perform_initialization=False,
        )
        return {"config": config, "init_method": nn.init.zeros_}


def local_config(model: Model, size: int) -> Model:
    """The model section with the sizes of one process's shard: heads, MLP width and (padded) vocabulary divided by `size`."""
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
    """Forward hook: megatron-core's linear layers return (output, bias), also without a bias; keeps the output."""
    return outputs[0]
