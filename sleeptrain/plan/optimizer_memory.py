"""Bytes that the optimizer needs: master weights and moments, and temporaries of an update."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from math import prod

import torch

from sleeptrain.engine.optimizers import Kind
from sleeptrain.engine.orthogonalise import batch_elements, batch_sizes
from sleeptrain.plan.ownership import StageParameters, partition_parts
from sleeptrain.train.job import Job

FP32 = 4
"""Bytes of a float32 element."""


def optimizer_bytes(job: Job, elements: Mapping[Kind, int]) -> float:
    """Bytes of fp32 master weights and moments, from trained elements by optimizer group."""
    moments: Mapping[Kind, int] = {"matrix": 1 if job.optim.name == "muon" else 2, "plain": 2}
    return float(sum(FP32 * (1 + moments[group]) * n for group, n in elements.items()))


def optimizer_work(job: Job, held: StageParameters, partition: Mapping[Kind, int], copy: int) -> float:
    """Temporaries of the optimizer, one parameter group after the other: two numbers per element for AdamW, the largest batch of
    matrices for Muon. `copy`: bytes per element of a copy of the gradient."""
    sizes = []
    for group, n in partition.items():
        work = _muon_work(job, held, n) if group == "matrix" and job.optim.name == "muon" else 2 * FP32 * n
        sizes.append(copy * n + work)
    return max(sizes)


def _muon_work(job: Job, held: StageParameters, n: int) -> float:
    """Temporaries of Muon over a partition of `n` elements: the largest batch, and what other processes send of the matrices at both
    ends of the partition. Of the processes the one that needs most."""
    touched = defaultdict[int, Counter[tuple[int, int]]](Counter)
    received, sizes = Counter[int](), [prod(shape) for shape in held.matrices]
    for matrix, rank, part in partition_parts(sizes, n):
        touched[rank][held.matrices[matrix]] += 1
        received[rank] += sizes[matrix] - part
    elements = (
        received[rank] + max(batch_elements(batch_sizes(count, *shape)[0], *shape) for shape, count in shapes.items())
        for rank, shapes in touched.items()
    )
    return float(getattr(torch, job.optim.ns_dtype).itemsize * max(elements))
