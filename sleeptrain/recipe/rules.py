"""Rules over several sections of a recipe: the unsupported combinations, the reason for each, and the way out.

docs/support.md is printed from this table. Sections check single values themselves; `completion.py` checks values against
the data and the number of processes, once both are known.
"""

from __future__ import annotations

from sleeptrain.parallel.config import LayoutError, batch_layout, pipeline_obstacle, tensor_obstacle, unsharded_options
from sleeptrain.program import loop_range
from sleeptrain.recipe.rule import Rule
from sleeptrain.train.job import Job
from sleeptrain.train.trained import trainable_problem, trainable_stages_problem


def _range_exceeds_stack(job: Job) -> bool:
    return job.sleep.loop.layers != "all" and job.sleep.loop.layers[1] > len(job.model.pattern)


def _normed_with_coda(job: Job) -> bool:
    depth = len(job.model.pattern)
    return job.sleep.loop.feedback == "normed" and loop_range(job.sleep, depth)[1] < depth


def _truncated(job: Job) -> bool:
    """Whether some passes of a sleeping window carry no gradient; these also block the gradient of later windows."""
    passes = job.sleep.gradient.passes
    return passes != "all" and passes < job.sleep.max_passes


def _group_obstacle(job: Job) -> str | None:
    """The reason why a process's micro-batches do not divide into groups; None if they do or another rule applies."""
    train, mesh = job.train, job.mesh
    if mesh.data < 1 or train.batch % (mesh.data * (train.micro or 1)) or 0 < mesh.group < mesh.pipe:
        return None
    try:
        batch_layout(train.batch, train.micro, mesh, mesh.data)
    except LayoutError as error:
        return error.reason
    return None


RULES: tuple[Rule[Job], ...] = (
    Rule(
        "loop-range", ("sleep.loop.layers", "model.layers"), _range_exceeds_stack,
        lambda job: f"the looped range ends beyond the last block; the stack has {len(job.model.pattern)} blocks",
        "end the range at or before the number of blocks in model.layers",
        ("sleep.loop.layers=[0, 9]",),
    ),
    Rule(
        "normed-coda", ("sleep.loop.feedback", "sleep.loop.layers", "model.layers"), _normed_with_coda,
        "the final norm can only be fed back if no block follows the looped range",
        "use sleep.loop.feedback=raw, or end the range at the last block",
        ("sleep.loop.feedback=normed", "sleep.loop.layers=[1, 3]"),
    ),
    Rule(
        "gated-prelude", ("sleep.loop.feedback", "sleep.loop.layers"),
        lambda job: job.sleep.gated and loop_range(job.sleep, len(job.model.pattern))[0] > 0,
        "gated feedback adds features to the embeddings, so the looped range must begin at block 0",
        "use sleep.loop.feedback=raw or embeddings, or begin the range at 0",
        ("sleep.loop.feedback=gated", "sleep.loop.layers=[1, 4]"),
    ),
    Rule(
        "gradient-horizon", ("sleep.gradient.windows", "sleep.gradient.passes", "sleep.passes"),
        lambda job: _truncated(job) and job.sleep.gradient.windows not in ("all", 1),
        "no gradient crosses a sleeping window unless all of its passes carry gradient, so a horizon of several windows has no effect",
        "use `all` or 1 for sleep.gradient.windows, or set sleep.gradient.passes=all",
        ("sleep.gradient.passes=1", "sleep.gradient.windows=2", "sleep.passes=3"),
    ),
    Rule(
        "trainable-names", ("optim.trainable",),
        lambda job: trainable_problem(job) is not None,
        lambda job: str(trainable_problem(job)),
        "name weights or modules of the model, such as layers.G for all Gated DeltaNet blocks, or set optim.trainable=null to train all",
        ("optim.trainable=[deltanet]",),
    ),
    Rule(
        "trainable-stages", ("optim.trainable", "mesh.pipe"),
        lambda job: trainable_stages_problem(job) is not None,
        lambda job: str(trainable_stages_problem(job)),
        "train whole blocks on every stage, or use mesh.pipe=1 with mesh.zero or mesh.tensor for a model that does not fit",
        ("mesh.pipe=2", "optim.trainable=[layers.0]"),
    ),
    Rule(
        "micro-batch", ("train.micro", "train.batch"),
        lambda job: job.train.micro is not None and job.train.batch % job.train.micro != 0,
        "the micro-batch size does not divide the batch size",
        "choose a micro-batch that divides the batch",
        ("train.batch=8", "train.micro=3"),
    ),
    Rule(
        "batch-over-data", ("train.batch", "mesh.data", "train.micro"),
        lambda job: job.mesh.data > 0 and job.train.batch % (job.mesh.data * (job.train.micro or 1)) != 0,
        "the batch does not divide into whole micro-batches over the processes of the data axis",
        "make train.batch a multiple of mesh.data x train.micro",
        ("train.batch=8", "mesh.data=3"),
    ),
    Rule(
        "group-stages", ("mesh.group", "mesh.pipe"),
        lambda job: 0 < job.mesh.group < job.mesh.pipe,
        "every pass would leave stages idle: a group needs at least as many micro-batches as there are pipeline stages",
        "use mesh.group=0, which chooses the size, or set it to at least mesh.pipe",
        ("mesh.pipe=2", "mesh.group=1"),
    ),
    Rule(
        "groups", ("train.batch", "train.micro", "mesh.group", "mesh.pipe", "mesh.data"),
        lambda job: _group_obstacle(job) is not None,
        lambda job: str(_group_obstacle(job)),
        "change train.batch, train.micro or mesh.group",
        ("mesh.data=1", "mesh.pipe=2", "train.batch=5", "train.micro=1", "mesh.group=2"),
    ),
    Rule(
        "pipe-layers", ("mesh.pipe", "model.layers"),
        lambda job: pipeline_obstacle(job.model, job.mesh) is not None,
        lambda job: str(pipeline_obstacle(job.model, job.mesh)),
        "choose a number of stages in this range",
        ("mesh.pipe=5",),
    ),
    Rule(
        "pipe-normed-truncated", ("mesh.pipe", "sleep.loop.feedback", "sleep.gradient.passes"),
        lambda job: job.mesh.pipe > 1 and job.sleep.loop.feedback == "normed" and _truncated(job),
        "the gradient of the final norm would be incomplete: the sending stage applies the norm and receives no gradient from a "
        "pass that detaches its input",
        "use sleep.gradient.passes=all, sleep.loop.feedback=raw, or mesh.pipe=1",
        ("mesh.pipe=2", "sleep.loop.feedback=normed", "sleep.gradient.passes=1", "sleep.passes=3"),
    ),
    Rule(
        "tensor-heads", ("mesh.tensor",),
        lambda job: tensor_obstacle(job.model, job.mesh.tensor) is not None,
        lambda job: str(tensor_obstacle(job.model, job.mesh.tensor)),
        "choose one of these, or change the sizes of the model",
        ("mesh.tensor=4",),
    ),
    Rule(
        "sequence-tensor", ("mesh.sequence", "mesh.tensor"),
        lambda job: job.mesh.sequence and job.mesh.tensor == 1,
        "sequence parallelism divides the tokens over the processes of the tensor axis, and there is only one",
        "use mesh.tensor=2 or more, or mesh.sequence=false",
        ("mesh.sequence=true",),
    ),
    Rule(
        "tensor-options", ("mesh.tensor", "model.deltanet.generator", "model.attention.bias"),
        lambda job: job.mesh.tensor > 1 and bool(unsharded_options(job.model)),
        "the taps that a generator computes, and biases of q, k and v, are not sharded over the tensor axis",
        "use mesh.tensor=1, and mesh.pipe or mesh.zero for a model that does not fit",
        ("mesh.tensor=2", "model.deltanet.generator=8"),
    ),
    Rule(
        "muon-tensor", ("optim.name", "mesh.tensor"),
        lambda job: job.optim.name == "muon" and job.mesh.tensor > 1,
        "Muon orthogonalises whole matrices, and tensor parallelism shards them",
        "use optim.name=adamw, or mesh.tensor=1",
        ("optim.name=muon", "optim.adam_lr=0.001", "mesh.tensor=2"),
    ),
    Rule(
        "zero3-muon", ("mesh.zero", "optim.name"),
        lambda job: job.mesh.zero == 3 and job.optim.name == "muon",
        "Muon orthogonalises whole matrices, and ZeRO 3 shards them",
        "use optim.name=adamw, or mesh.zero=2",
        ("mesh.zero=3", "optim.name=muon", "optim.adam_lr=0.001"),
    ),
    Rule(
        "zero3-pipe", ("mesh.zero", "mesh.pipe"),
        lambda job: job.mesh.zero == 3 and job.mesh.pipe > 1,
        "pipeline stages need whole parameters, and ZeRO 3 partitions them",
        "use mesh.zero=1, which is recommended with pipeline stages, or mesh.pipe=1",
        ("mesh.zero=3", "mesh.pipe=2"),
    ),
    Rule(
        "zero3-tensor", ("mesh.zero", "mesh.tensor"),
        lambda job: job.mesh.zero == 3 and job.mesh.tensor > 1,
        "the reduction of partial gradients over the tensor axis needs whole parameters, and ZeRO 3 partitions them",
        "use mesh.zero=1, which is recommended with tensor parallelism, or mesh.tensor=1",
        ("mesh.zero=3", "mesh.tensor=2"),
    ),
    Rule(
        "zero3-offload", ("mesh.zero", "train.offload"),
        lambda job: job.mesh.zero == 3 and job.train.offload,
        "ZeRO 3 runs on plain autograd, which keeps saved activations on the device",
        "use train.offload=false, or mesh.zero=2",
        ("mesh.zero=3", "train.offload=true", "train.recompute=pass"),
    ),
    Rule(
        "offload-none", ("train.offload", "train.recompute"),
        lambda job: job.train.offload and job.train.recompute in ("none", "selective"),
        "autograd graphs and outputs of products stay on the device, and they are nearly all that is saved",
        "use train.recompute=block, pass or window, or train.offload=false",
        ("train.offload=true", "train.recompute=none"),
    ),
    Rule(
        "compile-zero3", ("train.compile", "mesh.zero"),
        lambda job: job.train.compile is True and job.mesh.zero == 3,
        "ZeRO 3 gathers the parameters of a block in hooks, which torch.compile cannot trace",
        "use train.compile=false, or mesh.zero=2",
        ("train.compile=true", "mesh.zero=3"),
    ),
    Rule(
        "compile-tensor-selective", ("train.compile", "mesh.tensor", "train.recompute"),
        lambda job: job.train.compile is True and job.mesh.tensor > 1 and job.train.recompute == "selective",
        "the graph of a block would save what is summed over the tensor axis both before and after the sum",
        "use train.recompute=none, block, pass or window, or train.compile=false, or mesh.tensor=1",
        ("train.compile=true", "mesh.tensor=2", "train.recompute=selective"),
    ),
    Rule(
        "graphs-none", ("train.cuda_graphs", "train.recompute"),
        lambda job: job.train.graphed and job.train.recompute in ("none", "selective"),
        "every pass keeps its own saved activations, and a CUDA graph has memory for those of one pass",
        "use train.recompute=block, pass or window, or train.cuda_graphs=false",
        ("train.cuda_graphs=true", "train.recompute=none"),
    ),
    Rule(
        "graphs-zero3", ("train.cuda_graphs", "mesh.zero"),
        lambda job: job.train.graphed and job.mesh.zero == 3,
        "a CUDA graph reads parameters at fixed addresses, and ZeRO 3 gathers them to new addresses for every pass",
        "use train.cuda_graphs=false, or mesh.zero=2",
        ("train.cuda_graphs=true", "train.recompute=pass", "mesh.zero=3"),
    ),
)  # fmt: skip
"""A job that breaks no rule can be trained, provided that its data and the number of processes fit."""
