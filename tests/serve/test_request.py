"""What a body asks for: seeds, and the tokens of every prompt within the limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sleeptrain.serve.errors import ApiError
from sleeptrain.serve.request import CompletionRequest, parse_request


def request(**fields: Any) -> CompletionRequest:
    return parse_request(json.dumps({"model": "m", "prompt": "a"} | fields).encode(), "m")


def test_requests_without_a_seed_are_sampled_differently() -> None:
    seeds = {request().sampling(0).seed for _ in range(8)}
    assert len(seeds) == 8
    assert len({request(seed=3).sampling(0).seed for _ in range(8)}) == 1, "a seed gives the same text again"
    once = request()
    assert once.sampling(0).seed == once.sampling(0).seed != once.sampling(1).seed


@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1"])
def test_numbers_out_of_range_are_refused(field: str, value: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_request(f'{{"model": "m", "prompt": "a", "{field}": {value}}}'.encode(), "m")
    assert (error.value.status, error.value.param) == (400, field)
