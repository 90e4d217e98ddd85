"""The random generators that a computation on a device draws from: the CPU's and, on a GPU, its own."""

import contextlib
from collections.abc import Iterator

import torch

OF_THEIR_OWN = ("cuda", "mps")  # kinds of device that have a generator


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators' states, uint8 tensors by kind of device: "cpu", and "cuda" or "mps"."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in OF_THEIR_OWN:
        states[device.type] = torch.get_device_module(device.type).get_rng_state(device)
    return states


def restore_random(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set the generators to what `random_states` gave; one of a kind that was not there then stays as it is."""
    torch.set_rng_state(states["cpu"])
    if device.type in OF_THEIR_OWN and device.type in states:
        torch.get_device_module(device.type).set_rng_state(states[device.type], device)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed them, and no other GPU's, as `torch.manual_seed` would."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def kept_random(device: torch.device) -> Iterator[None]:
    """Inside, random numbers may be drawn; afterwards the generators are what they were."""
    states = random_states(device)
    try:
        yield
    finally:
        restore_random(states, device)
