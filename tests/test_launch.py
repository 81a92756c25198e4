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
