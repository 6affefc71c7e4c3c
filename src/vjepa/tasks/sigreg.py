"""SIGReg: how far samples are from an isotropic Gaussian, by sketches (LeJEPA, arXiv 2511.08544).

Constant features, or features that live in few directions, are far from one: so a loss with this
summand needs no second encoder to keep it from collapsing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa.counter_random import uniforms
from vjepa.runtime.distributed import ProcessGroup

NUM_DIRECTIONS = 256
_LARGEST, _STEPS = 5.0, 8  # 17 points from -5 to 5; the integrand is even, and 0 at 0


def draw_directions(count: int, width: int, seed: int, step: int) -> Tensor:
    """Unit vectors, float32 [M, D] on the CPU, which follow from the seed and the step alone."""
    drawn = uniforms(seed, "sigreg", step, count * width).reshape(count, width)
    normal = torch.special.ndtri(torch.from_numpy(drawn + 2.0**-54))  # at 0 it is infinite
    return F.normalize(normal, dim=-1).float()


def sigreg(samples: Tensor, directions: Tensor, group: ProcessGroup) -> Tensor:
    """This process's summand of the whole batch's value, which does not depend on its split.

    For a direction a and the N samples z of all processes, with weights w(t) = exp(-t^2 / 2)::

        T = N * integral over t from -5 to 5 of |mean exp(i t a.z) - w(t)|^2 w(t) dt

    (Epps and Pulley's statistic) by the trapezoid rule at 17 points; averaged over directions, and
    over sets of samples, such as the views of a clip. Of Gaussian samples the mean is sqrt(2 pi) -
    sqrt(2 pi / 3) = 1.06, whatever N; of constant ones it grows with N.

    Args:
        samples: float [..., n, D] in each process, computed with in the directions' dtype.
        directions: float [M, D], unit vectors, the same in every process.
        group: The processes that hold samples; it is called by all of them.
    """
    with torch.autocast(samples.device.type, enabled=False):
        projected = samples.to(directions.dtype) @ directions.T
        step = _LARGEST / _STEPS
        t = step * torch.arange(1, _STEPS + 1, device=projected.device, dtype=projected.dtype)
        angles = projected[..., None] * t
        sums = torch.stack([angles.cos().sum(dim=-3), angles.sin().sum(dim=-3)])
        # Not from the host: processes may hold different numbers.
        count = sums.new_full((1,), samples.shape[-2])
        total = group.summed(torch.cat([sums.flatten(), count]))
        count = total[-1]
        real, imaginary = (total[:-1] / count).view(sums.shape)
        normal = torch.exp(-t.square() / 2)
        weight = 2 * step * normal
        weight[-1] /= 2  # the ends of the trapezoid rule
        errors = (real - normal).square() + imaginary.square()
        value = count * (errors * weight).sum(dim=-1).mean()
        # Each process has the gradient of its own samples, and its share of the value.
        return value - value.detach() * (1 - 1 / group.size)
