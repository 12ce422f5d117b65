"""The one table of what does not go together in a recipe: why, and what to do. docs/support.md is printed from it.

Sections say themselves what is wrong with a single value; what the data or the number of processes decides is asked in
`recipe.py`, when they are known.
"""

from __future__ import annotations

from sleeptrain.config import Rule
from sleeptrain.parallel.config import LayoutError, batch_layout, pipeline_obstacle, tensor_obstacle
from sleeptrain.program import loop_range
from sleeptrain.train.job import Job


def _looped_beyond_the_stack(job: Job) -> bool:
    return job.sleep.loop.layers != "all" and job.sleep.loop.layers[1] > len(job.model.pattern)


def _normed_below_a_coda(job: Job) -> bool:
    depth = len(job.model.pattern)
    return job.sleep.loop.feedback == "normed" and loop_range(job.sleep, depth)[1] < depth


def _truncated(job: Job) -> bool:
    """Whether no gradient enters a sleeping window from the ones after it."""
    passes = job.sleep.gradient.passes
    return passes != "all" and passes < job.sleep.max_passes


def _ungrouped(job: Job) -> str | None:
    """Why the rows of a process do not make groups of micro-batches; None if they do, or other rules say why not."""
    rows, mesh = job.train, job.mesh
    if mesh.data < 1 or rows.batch % (mesh.data * (rows.micro or 1)) or 0 < mesh.group < mesh.pipe:
        return None
    try:
        batch_layout(rows.batch, rows.micro, mesh, mesh.data)
    except LayoutError as error:
        return error.reason
    return None


RULES: tuple[Rule[Job], ...] = (
    Rule(
        "loop-range", ("sleep.loop.layers", "model.layers"), _looped_beyond_the_stack,
        lambda job: f"the range ends above the stack; the stack has {len(job.model.pattern)} blocks",
        "let the range end at or below the number of blocks in model.layers",
        ("sleep.loop.layers=[0, 9]",),
    ),
    Rule(
        "normed-coda", ("sleep.loop.feedback", "sleep.loop.layers", "model.layers"), _normed_below_a_coda,
        "features through the final norm are only there where no block follows the looped range",
        "use sleep.loop.feedback=raw, or let the range end at the last block",
        ("sleep.loop.feedback=normed", "sleep.loop.layers=[1, 3]"),
    ),
    Rule(
        "gradient-horizon", ("sleep.gradient.windows", "sleep.gradient.passes", "sleep.passes"),
        lambda job: _truncated(job) and job.sleep.gradient.windows not in ("all", 1),
        "no gradient crosses a sleeping window of which not all passes carry gradient, so that a horizon of several windows would "
        "promise what is not there",
        "use `all` or 1 for sleep.gradient.windows, or sleep.gradient.passes=all",
        ("sleep.gradient.passes=1", "sleep.gradient.windows=2", "sleep.passes=3"),
    ),
    Rule(
        "micro-batch", ("train.micro", "train.batch"),
        lambda job: job.train.micro is not None and job.train.batch % job.train.micro != 0,
        "the rows of a batch do not make whole micro-batches",
        "choose a micro-batch that divides the batch",
        ("train.batch=8", "train.micro=3"),
    ),
    Rule(
        "batch-over-data", ("train.batch", "mesh.data", "train.micro"),
        lambda job: job.mesh.data > 0 and job.train.batch % (job.mesh.data * (job.train.micro or 1)) != 0,
        "the rows of a batch do not divide over the processes of the data axis, in whole micro-batches",
        "make train.batch a multiple of mesh.data x train.micro",
        ("train.batch=8", "mesh.data=3"),
    ),
    Rule(
        "group-stages", ("mesh.group", "mesh.pipe"),
        lambda job: 0 < job.mesh.group < job.mesh.pipe,
        "stages would wait for one another in every pass: a group needs at least as many micro-batches as there are stages",
        "use mesh.group=0, which chooses, or at least mesh.pipe",
        ("mesh.pipe=2", "mesh.group=1"),
    ),
    Rule(
        "groups", ("train.batch", "train.micro", "mesh.group", "mesh.pipe", "mesh.data"),
        lambda job: _ungrouped(job) is not None,
        lambda job: str(_ungrouped(job)),
        "change train.batch, train.micro or mesh.group",
        ("mesh.data=1", "mesh.pipe=2", "train.batch=5", "train.micro=1", "mesh.group=2"),
    ),
    Rule(
        "pipe-layers", ("mesh.pipe", "model.layers"),
        lambda job: pipeline_obstacle(job.model, job.mesh) is not None,
        lambda job: getattr(pipeline_obstacle(job.model, job.mesh), "reason", ""),
        "choose another number of stages",
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
        "choose one of these, or other sizes of the model",
        ("mesh.tensor=4",),
    ),
    Rule(
        "sequence-tensor", ("mesh.sequence", "mesh.tensor"),
        lambda job: job.mesh.sequence and job.mesh.tensor == 1,
        "the processes that share the tokens are those of the tensor axis, and there is one",
        "use mesh.tensor=2 or more, or mesh.sequence=false",
        ("mesh.sequence=true",),
    ),
    Rule(
        "muon-tensor", ("optim.name", "mesh.tensor"),
        lambda job: job.optim.name == "muon" and job.mesh.tensor > 1,
        "tensor parallelism cuts matrices, and Muon orthogonalises whole ones",
        "use optim.name=adamw, or mesh.tensor=1",
        ("optim.name=muon", "optim.adam_lr=0.001", "mesh.tensor=2"),
    ),
    Rule(
        "zero3-muon", ("mesh.zero", "optim.name"),
        lambda job: job.mesh.zero == 3 and job.optim.name == "muon",
        "ZeRO 3 cuts matrices, and Muon orthogonalises whole ones",
        "use optim.name=adamw, or mesh.zero=2",
        ("mesh.zero=3", "optim.name=muon", "optim.adam_lr=0.001"),
    ),
    Rule(
        "zero3-pipe", ("mesh.zero", "mesh.pipe"),
        lambda job: job.mesh.zero == 3 and job.mesh.pipe > 1,
        "stages run on the tape, which needs whole parameters, and ZeRO 3 leaves none",
        "use mesh.zero=1, which is what we recommend with stages, or mesh.pipe=1",
        ("mesh.zero=3", "mesh.pipe=2"),
    ),
    Rule(
        "zero3-tensor", ("mesh.zero", "mesh.tensor"),
        lambda job: job.mesh.zero == 3 and job.mesh.tensor > 1,
        "what tensor processes share of a gradient is completed on the tape, which needs whole parameters, and ZeRO 3 leaves none",
        "use mesh.zero=1, which is what we recommend with tensor parallelism, or mesh.tensor=1",
        ("mesh.zero=3", "mesh.tensor=2"),
    ),
    Rule(
        "zero3-offload", ("mesh.zero", "train.offload"),
        lambda job: job.mesh.zero == 3 and job.train.offload,
        "plain autograd runs under ZeRO 3, and what it keeps stays on the device",
        "use train.offload=false, or mesh.zero=2",
        ("mesh.zero=3", "train.offload=true", "train.recompute=pass"),
    ),
    Rule(
        "zero3-sum", ("mesh.zero", "optim.sum_dtype"),
        lambda job: job.mesh.zero == 3 and job.optim.sum_dtype != "float32",
        "plain autograd runs under ZeRO 3, which sums the gradients of a weight's many uses in the weight's own type",
        "leave optim.sum_dtype=float32, or use mesh.zero=2",
        ("mesh.zero=3", "optim.sum_dtype=bfloat16"),
    ),
    Rule(
        "offload-none", ("train.offload", "train.recompute"),
        lambda job: job.train.offload and job.train.recompute == "none",
        "whole graphs are kept, which stay on the device and hold all that would be moved",
        "use train.recompute=block, pass or window, or train.offload=false",
        ("train.offload=true", "train.recompute=none"),
    ),
    Rule(
        "graphs-none", ("train.cuda_graphs", "train.recompute"),
        lambda job: job.train.cuda_graphs and job.train.recompute == "none",
        "what backward needs of every pass is kept, each in its own memory, and a recording has memory for one pass",
        "use train.recompute=block, pass or window, or train.cuda_graphs=false",
        ("train.cuda_graphs=true", "train.recompute=none"),
    ),
    Rule(
        "graphs-zero3", ("train.cuda_graphs", "mesh.zero"),
        lambda job: job.train.cuda_graphs and job.mesh.zero == 3,
        "a recording reads parameters where they stood when it was made, and ZeRO 3 gathers them anew for every pass",
        "use train.cuda_graphs=false, or mesh.zero=2",
        ("train.cuda_graphs=true", "train.recompute=pass", "mesh.zero=3"),
    ),
    Rule(
        "graphs-tensor", ("train.cuda_graphs", "mesh.tensor"),
        lambda job: job.train.cuda_graphs and job.mesh.tensor > 1,
        "tensor processes talk to one another inside of a pass, and what they say is not recorded yet",
        "use train.cuda_graphs=false, or mesh.tensor=1",
        ("train.cuda_graphs=true", "train.recompute=pass", "mesh.tensor=2"),
    ),
)  # fmt: skip
"""A job that breaks none of these can be trained, if its data and the number of its processes fit."""
