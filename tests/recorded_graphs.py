"""A backend of torch.compile that keeps the graphs as TorchInductor would get them, and runs them uncompiled."""

from functools import partial

from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table


def recording(graphs):
    """The backend that appends to `graphs` the forward and then the backward of every function that is compiled."""

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    return aot_autograd(
        fw_compiler=keep, bw_compiler=keep, decompositions=select_decomp_table(),
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
    )  # fmt: skip
