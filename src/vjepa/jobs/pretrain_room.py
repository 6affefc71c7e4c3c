"""Whether a pretraining run fits into a machine: known before anything is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vjepa.data.loader.reading import READY_BATCHES
from vjepa.masking import MaskSampler
from vjepa.models.operations import MaskTokens, count_parameters, update_memory
from vjepa.runtime.process import available_bytes
from vjepa.training.preflight import LIBRARIES_BYTES, check_disk, check_memory

if TYPE_CHECKING:
    from vjepa.jobs.pretrain import PretrainConfig

_DRAWN_CLIPS = 32  # whose masks tell how many tokens a clip has
_WORKER, _WORKERS_SHARED = 0.15e9, 0.1e9
"""Bytes of one worker that decodes (0.1 of small videos), and of what all have in common."""


def memory_needed(
    config: PretrainConfig, device_type: str, size: int, parts: int, checkpointing: bool
) -> dict[str, float]:
    """Bytes that an update takes in each of `size` processes, in `parts` micro-batches.

    Without what the loader takes, which is never on a GPU.
    """
    clips, sharing = config.data.batch_size // size, config.distributed
    encoder, at_once = config.model.encoder, -(-clips // parts)
    sampler = MaskSampler(config.masking, encoder.grid, encoder.tubelet_size, config.seed)
    masks = sampler.sample(np.arange(min(clips, _DRAWN_CLIPS)), 0)
    memory = update_memory(
        config.model,
        [MaskTokens(mask.num_context_mean, mask.num_target_mean) for mask in masks],
        at_once,
        activation_checkpointing=checkpointing,
        precision=config.training.precision,
        on_cpu=device_type == "cpu",
    )
    pixels = encoder.num_tokens * encoder.patch_values
    # What auto means is known only where the weights are: it shards them where they are large.
    shards = 1 if sharing.strategy == "ddp" else sharing.shard_size or size
    gradients = 4.0 * sum(count_parameters(config.model)) / shards
    return {
        "weights and moments": memory.states / shards - gradients,
        # Gradients come while activations go.
        "activations": max(memory.activations, gradients),
        "clips": pixels * (clips + 8.0 * at_once),  # uint8; float32 and its patches
        "libraries": LIBRARIES_BYTES,
    }


def _loader_memory(config: PretrainConfig, clips: int) -> dict[str, float]:
    """Bytes that a process's loader takes at most: its workers, and the clips that wait."""
    reading, shape = config.data.loader, config.model.encoder
    if not reading.num_workers:
        return {}
    batch = 3.0 * clips * shape.num_frames * shape.image_size**2
    limit = reading.max_queue_gigabytes
    room = (available_bytes() or 4 * batch) / 4 if limit is None else limit * 1e9
    waiting = min((reading.prefetch_batches + READY_BATCHES) * batch, max(room, batch))
    workers = _WORKERS_SHARED + reading.num_workers * _WORKER
    return {"workers": workers, "clips that wait": waiting}


def check_room(config: PretrainConfig, out: Path, device: torch.device, size: int) -> None:
    """Say what the run needs, and refuse it where it cannot fit; nothing is allocated before."""
    clips = config.data.batch_size // size
    reading = _loader_memory(config, clips) if device.type == "cpu" else {}

    def needs(parts: int, checkpointing: bool) -> dict[str, float]:
        return memory_needed(config, device.type, size, parts, checkpointing) | reading

    check_memory(needs, device, config.optim, config.training, clips)
    trained, averaged = sum(count_parameters(config.model)), count_parameters(config.model)[0]
    check_disk(out, 4.0 * (3 * trained + averaged))
