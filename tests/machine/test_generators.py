"""Random generators: seeded, read and put back. On Apple's GPUs: tests/test_mps.py."""

import pytest
import torch
from tiny_llama import DEVICES

from qlora_lab.machine.generators import kept_random, random_states, restore_random, seed_generators

devices = pytest.mark.parametrize(
    "device", [pytest.param(torch.device(kind), marks=pytest.mark.cuda if kind == "cuda" else ()) for kind in DEVICES]
)


@devices
def test_what_is_put_back_is_drawn_again(device):
    states = random_states(device)
    assert states.keys() == {"cpu", device.type}
    one = torch.rand(5), torch.rand(5, device=device)
    restore_random(states, device)
    assert all(map(torch.equal, (torch.rand(5), torch.rand(5, device=device)), one))


@devices
def test_draws_inside_leave_no_trace_after_an_error_either(device):
    before = random_states(device)
    with pytest.raises(KeyError), kept_random(device):
        seed_generators(3, device)
        torch.rand(5), torch.rand(5, device=device)
        raise KeyError
    after = random_states(device)
    assert all(torch.equal(before[kind], after[kind]) for kind in before)


@devices
def test_a_seed_decides_both(device):
    def drawn(seed):
        seed_generators(seed, device)
        return torch.cat([torch.rand(3), torch.rand(3, device=device).cpu()])

    with kept_random(device):
        assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_states_of_a_run_on_a_cpu_are_taken_on_any_device():
    states = random_states(torch.device("cpu"))
    restore_random(states, torch.device("cuda", 0))
    restore_random(states, torch.device("mps", 0))
    assert torch.equal(torch.get_rng_state(), states["cpu"])
