"""Cluster files: the shipped ones, every error of one at once, and which links an axis has."""

from pathlib import Path

import pytest

from sleeptrain.cli.cluster import load_cluster
from sleeptrain.errors import UserError
from sleeptrain.plan.hardware import Hardware
from sleeptrain.recipe.shipped import configs_root


def test_shipped_cluster_files_say_every_value():
    files = sorted((configs_root() / "cluster").glob("*.yaml"))
    assert {"h100-slurm", "a100-80gb"} <= {file.stem for file in files}
    for file in files:
        resolved = load_cluster(file.stem)
        hardware = {path: source for path, source in resolved.sources.items() if path.startswith("hardware.")}
        assert all(source.startswith(f"{file.name}:") for source in hardware.values()), hardware
    h100, a100 = (load_cluster(name).value.hardware for name in ("h100-slurm", "a100-80gb"))
    assert h100 == Hardware() and h100.bytes == a100.bytes == 80 * 2**30
    assert (h100.speed, a100.speed) == (0.4 * 989e12, 0.4 * 312e12)


def test_a_cluster_file_names_all_its_errors(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("hardware:\n  gpu: 8\n  memory: 80\n  share: 40\n  flops: fast\n")
    with pytest.raises(UserError) as raised:
        load_cluster(str(file))
    told = str(raised.value)
    assert f"hardware.gpu = 8 ({file}:2): unknown key; did you mean hardware.gpus?" in told
    assert f'hardware.flops = "fast" ({file}:5): expected a number' in told
    file.write_text("hardware:\n  memory: 80\n  share: 40\n  gpus: 0\n  price: -1\n  network_bandwidth: 0\n")
    with pytest.raises(UserError) as raised:
        load_cluster(str(file))
    assert len(str(raised.value).splitlines()) == 5
    assert f"({file}:2): '80' is not a size with its unit, such as 80GiB" in str(raised.value)
    with pytest.raises(UserError, match=r'cluster file "h100-slrum": no such file.*did you mean h100-slurm'):
        load_cluster("h100-slrum")


@pytest.mark.parametrize(
    ("size", "stride", "ring", "message"),
    [
        (8, 1, 450, 450),  # a node
        (4, 2, 450, 450),
        (64, 1, 400, 50),  # eight adapters of a node carry the ring
        (8, 4, 100, 50),  # data behind tensor=4: two
        (2, 8, 50, 50),
        (4, 16, 50, 50),
    ],
)
def test_links_of_an_axis_follow_from_the_ranks_in_a_node(size, stride, ring, message):
    hardware = Hardware()
    found = (hardware.bandwidth_of_ring(size, stride), hardware.bandwidth_of_message(size, stride))
    assert found == (ring * 1e9, message * 1e9)
