"""Launches: on which device they happen, and which configurations a device gets."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")
from fastenh_kernels.shared import launch


class Kernel:
    """Stands in for a compiled kernel; writes down which device is the current one."""

    def __init__(self, current):
        self.current, self.launches = current, []

    def __getitem__(self, grid):
        return lambda **arguments: self.launches.append((self.current[-1], grid, arguments["num_warps"]))


def test_a_launch_happens_on_the_device_of_its_tensors(monkeypatch):
    current = [torch.device("cuda:0")]

    @contextmanager
    def device(wanted):
        current.append(wanted)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    kernel = Kernel(current)
    with FakeTensorMode():
        there, here = torch.empty(1, device="cuda:1"), torch.empty(1)
    for tensor in (there, here):
        launch.launch(kernel, 3, None, num_warps=4, rows=7, p_x=tensor)
    launch.launch(kernel, 0, None, num_warps=4, p_x=there)
    assert kernel.launches == [(torch.device("cuda:1"), (3,), 4), (torch.device("cuda:0"), (3,), 4)]
    assert len(current) == 1


@pytest.mark.usefixtures("outputs_begin_as_nan")
def test_outputs_of_every_making_begin_as_nan():
    x = torch.zeros(3)
    for made in (torch.empty(3), torch.empty_like(x), x.new_empty(3), torch.empty_like(x.to(torch.complex64))):
        assert made.isnan().all()
    assert not torch.empty_like(x, dtype=torch.int64).is_floating_point()


@pytest.mark.parametrize(
    ("architecture", "warpgroups", "shared"),
    [(80, False, 163), (86, False, 99), (89, False, 99), (90, True, 227), (100, False, 227), (120, False, 99)],
)
def test_configurations_go_by_what_a_chip_offers(architecture, warpgroups, shared):
    """A later chip is not a larger one: what sm_90 takes would not fit sm_120."""
    meta = torch.device("meta")
    with launch.recording(architecture):
        assert launch.warpgroups(meta) is warpgroups
        assert launch.tensor_memory(meta) is (architecture == 100)
        assert launch.shared_memory(meta) == 1024 * shared
