"""The state of training as named arrays, for checkpoints, and back: Adam's moments, modules, random generators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_arrays", "moments", "named", "random_states", "restore_moments", "restore_random", "under"]


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix before every name."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Take what was named with a prefix, as tensors on the CPU."""
    start = f"{prefix}/"
    return {name.removeprefix(start): torch.from_numpy(a) for name, a in arrays.items() if name.startswith(start)}


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Give tensors as arrays: those of the CPU as they are, without a copy; those of another device as a copy."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and number of steps for each parameter, in their order; empty before the first step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {f"{i}/{name}": value for i, p in enumerate(parameters) for name, value in optimizer.state[p].items()}


def restore_moments(optimizer: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> None:
    """Put the moments back."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in kept.items():
        i, which = name.split("/")
        parameter = parameters[int(i)]
        # The count of steps stays on the CPU, as the optimizer itself has it.
        optimizer.state[parameter][which] = value.clone() if which == "step" else value.to(parameter.device)


def random_states(generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    """States of a generator of one's own and of torch's global ones, which dropout draws from."""
    states = {"own": generator.get_state(), "global": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random(states: Mapping[str, Tensor], generator: torch.Generator, device: torch.device) -> None:
    """Put the states back; what was kept on another kind of device goes on with other draws of dropout."""
    generator.set_state(states["own"])
    torch.set_rng_state(states["global"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
