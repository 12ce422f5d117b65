"""Exported folders in mlx-lm on a CPU: logits and greedy tokens of the plain model."""

import os

import numpy as np
import pytest
import torch

from sleeptrain.convert.export import export_hf
from sleeptrain.inference import SleepSession
from sleeptrain.program import Sleep
from tests.convert.runs import BYTES, write_run
from tests.convert.toys import small

pytestmark = pytest.mark.engines


@pytest.mark.parametrize("layers", ["GGGA", "GAGA"])
def test_mlx_has_our_logits_and_greedy_tokens(layers, tmp_path):
    if "CI" not in os.environ:  # where a missing engine fails
        pytest.importorskip("mlx.core", reason="mlx-lm is not installed in .venv-engines")
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    ours = small(layers, vocab=BYTES.size, std=0.05, tie=layers == "GGGA")
    export_hf(write_run(tmp_path / "run", ours, Sleep(window=128)), tmp_path / "hf", torch.float32, 60_000)
    model, _ = load_model(tmp_path / "hf", model_config={"model_type": "qwen3_5"})  # it knows no qwen3_5_text
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(3))
    session = SleepSession(ours, Sleep(window=128), batch=2)
    expected = session.feed(tokens)
    found = torch.from_numpy(np.array(model(mx.array(tokens.numpy()))))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    cache, token, greedy = make_prompt_cache(model), mx.array(tokens.numpy()), []
    for _ in range(48):
        token = mx.argmax(model(token, cache=cache)[:, -1], -1)[:, None]
        greedy.append(np.array(token).astype(np.int64))
    assert np.array_equal(np.concatenate(greedy, 1), torch.stack(list(session.generate(48)), 1).numpy())
