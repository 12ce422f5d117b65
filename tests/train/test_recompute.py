"""Memory that each `train.recompute` policy saves for backward, measured in storages, including closures and caches."""

import pytest
import torch

from sleeptrain.execute.activation_checkpoint import AUTOGRAD_WRAPPERS
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model
from sleeptrain.model.init import initialise
from sleeptrain.model.language import LanguageModel
from sleeptrain.model.micro_batch import MicroBatch
from sleeptrain.model.sleep import run
from sleeptrain.program import Loop, Sleep, Window, compile
from tests.storages import StorageCounter

ROWS, LENGTH, WIDTH, VOCAB = 2, 8, 16, 300
H = ROWS * LENGTH * WIDTH * 4
S = ROWS * 2 * 8 * 8 * 4  # two value heads of 8 x 8 in one block
TAIL = ROWS * 3 * (8 + 8 + 16) * 4  # the last three inputs of q, k and v
SMALL = 1 << 10  # losses of a window and scalars


def kept(recompute: str, passes: int, windows: int) -> int:
    """Bytes allocated in forward that are live at the start of backward."""
    layout = [Window(i * LENGTH, (i + 1) * LENGTH, True) for i in range(windows)]
    sleep = Sleep(window=LENGTH, passes=passes, loop=Loop(trigger="every"))
    config = Model(
        width=WIDTH, layers="AG", vocab=VOCAB, mlp=MlpConfig(hidden=16), attention=AttentionConfig(heads=2, kv_heads=1, head_dim=8),
        deltanet=DeltaNetConfig(key_heads=1, value_heads=2, head_dim=8),
    )  # fmt: skip
    model = LanguageModel(config)
    initialise(model, 0, 64)
    tokens = torch.randint(VOCAB, (ROWS, windows * LENGTH), generator=torch.Generator().manual_seed(0))
    batch, program = MicroBatch(tokens, tokens, model.zero_state(sleep, ROWS)), compile(sleep, layout, 2)
    with StorageCounter() as storages:
        result = run(model, batch, program, sleep, recompute=AUTOGRAD_WRAPPERS[recompute])
    assert result.nll.requires_grad  # the result holds the graph
    return storages.alive


@pytest.mark.parametrize(
    ("recompute", "a_pass", "a_window"),
    [
        ("block", 2 * H + S + TAIL, 6 * H + 3 * (S + TAIL)),
        ("pass", H + S + TAIL, 2 * H + 3 * (S + TAIL)),
        ("window", 0, S + TAIL),
    ],
)
def test_memory_grows_by_the_saved_inputs_of_each_pass_and_window(recompute: str, a_pass: int, a_window: int) -> None:
    """The first pass of a window reads tokens, so three passes save features twice and state three times. The stack has two
    blocks."""
    base, deeper, longer = kept(recompute, 3, 3), kept(recompute, 4, 3), kept(recompute, 3, 4)
    assert a_pass <= (deeper - base) / 2 <= a_pass + SMALL  # two of the three windows sleep
    assert a_window <= longer - base <= a_window + SMALL
