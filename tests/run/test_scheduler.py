"""The number of SLURM's job in a job, in a job of an array, and elsewhere."""

import pytest

from sleeptrain.run.scheduler import job_number

NAMES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")


@pytest.mark.parametrize(
    ("values", "number"), [((), None), (("17",), "17"), (("17", "17", "0"), "17_0"), (("18", "17", "3"), "17_3")]
)
def test_the_number_names_this_job_alone(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], number: str | None
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(NAMES, values, strict=False):
        monkeypatch.setenv(name, value)
    assert job_number() == number
