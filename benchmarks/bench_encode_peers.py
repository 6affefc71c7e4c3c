"""VideoMAE and V-JEPA 2 through ours and through `transformers`: the same weights, clips, tokens.

Weights are drawn once by transformers and opened by ours from the folder that it writes; tokens are
compared before anything is timed. `sincos` is V-JEPA 1 of that size: what rotary positions cost.
Each encoder runs in a process of its own, as it would be in use; calls are taken in turn, so that
what else the machine does hits all alike; medians of wall clock and of CPU time, the least CPU
time, and the ratios.
Nothing is downloaded. Needs the extra `transformers`.

    OMP_WAIT_POLICY=passive python benchmarks/bench_encode_peers.py --model vits16 --batch 2 \
        --threads 2 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VJEPA2Config, VJEPA2Model

from vjepa import load_encoder
from vjepa.jobs.bench_encode import encoder_flops, machine_name
from vjepa.models import PRESETS, Encoder, EncoderConfig, normalise_clip
from vjepa.runtime.device import compile_blocks, set_up_device

Encode = Callable[[Tensor], Tensor]


def ours(
    config: EncoderConfig, device: torch.device, *, of: str | None = None, compile_it: bool = False
) -> Encode:
    set_up_device(device.type)  # what every job of ours does first
    encoder = Encoder(config)
    if of is not None:
        with tempfile.TemporaryDirectory() as folder:
            drawn(of, config).save_pretrained(folder)
            encoder = load_encoder(folder)
    encoder = encoder.eval().requires_grad_(False).to(device)
    if compile_it:
        compile_blocks([encoder])
    return lambda clips: encoder(normalise_clip(clips))


def video_mae(config: EncoderConfig) -> VideoMAEForPreTraining:
    peer = VideoMAEConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_frames=config.num_frames,
        tubelet_size=config.tubelet_size,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        use_mean_pooling=False,  # as the pretrained ones: with the last norm
        attn_implementation="sdpa",
    )
    return VideoMAEForPreTraining(peer).eval().requires_grad_(False)


def vjepa2(config: EncoderConfig) -> VJEPA2Model:
    peer = VJEPA2Config(
        crop_size=config.image_size,
        patch_size=config.patch_size,
        frames_per_clip=config.num_frames,
        tubelet_size=config.tubelet_size,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        attn_implementation="sdpa",
    )
    return VJEPA2Model(peer).eval().requires_grad_(False)


PEERS: dict[str, Callable[[EncoderConfig], Any]] = {
    "VideoMAEModel": video_mae,
    "VJEPA2Model": vjepa2,
}


def drawn(of: str, config: EncoderConfig) -> Any:
    """The same weights in every process."""
    torch.manual_seed(0)
    return PEERS[of](config)


def theirs(config: EncoderConfig, device: torch.device, *, of: str) -> Encode:
    model = drawn(of, config).to(device)
    model = getattr(model, "videomae", model)
    how = {"skip_predictor": True} if of == "VJEPA2Model" else {}
    return lambda clips: model(normalise_clip(clips).transpose(1, 2), **how).last_hidden_state


PRECISIONS = ("float32", "bfloat16")
ENCODERS: dict[str, Callable[[EncoderConfig, torch.device], Encode]] = {
    "sincos": ours,
    "ours of VideoMAEModel": partial(ours, of="VideoMAEModel"),
    "VideoMAEModel": partial(theirs, of="VideoMAEModel"),
    "ours of VJEPA2Model": partial(ours, of="VJEPA2Model"),
    "VJEPA2Model": partial(theirs, of="VJEPA2Model"),
    "sincos, compiled": partial(ours, compile_it=True),
    "ours of VJEPA2Model, compiled": partial(ours, of="VJEPA2Model", compile_it=True),
}


@torch.no_grad()
def work(name: str, args: argparse.Namespace, pipe: Connection) -> None:
    """A process that encodes once for each message, until it is sent None."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, config = torch.device(args.device), encoder_config(args)
    encode = ENCODERS[name](config, device)
    shape = (args.batch, 3, config.num_frames, args.image_size, args.image_size)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    torch.manual_seed(0)
    checked = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    pipe.send(encode(checked)[:, ::97].float().cpu().numpy())
    while (precision := pipe.recv()) is not None:
        start, start_cpu = time.perf_counter(), time.process_time()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            tokens = encode(clips)
        if device.type == "cuda":
            torch.cuda.synchronize()
        used = time.process_time() - start_cpu
        assert tokens.shape == (args.batch, config.num_tokens, config.width), name
        pipe.send((time.perf_counter() - start, used))


def encoder_config(args: argparse.Namespace) -> EncoderConfig:
    preset = PRESETS[args.model]
    return EncoderConfig(
        width=preset.width, depth=preset.depth, heads=preset.heads, image_size=args.image_size
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PRESETS, default="vits16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also ours compiled")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    names = [name for name in ENCODERS if args.compile or not name.endswith("compiled")]
    context, pipes = multiprocessing.get_context("spawn"), {}
    for name in names:
        pipes[name], far = context.Pipe()
        context.Process(target=work, args=(name, args, far), daemon=True).start()
        far.close()
    tokens = {name: pipe.recv() for name, pipe in pipes.items()}
    for peer in PEERS:
        apart = np.abs(tokens[f"ours of {peer}"] - tokens[peer]).max()
        print(
            f"{peer}: tokens of ours differ by at most {apart:.1e} of {abs(tokens[peer]).max():.1f}"
        )
        assert apart < 1e-3, peer
    times = {(name, precision): [] for name in names for precision in PRECISIONS}
    for turn in range(args.rounds + 1):
        for (name, precision), taken in times.items():
            pipes[name].send(precision)
            seconds = pipes[name].recv()
            if turn:  # the first round warms up
                taken.append(seconds)
    for pipe in pipes.values():
        pipe.send(None)
    print(f"{machine_name()}, load {os.getloadavg()[0]:.1f}, {args}")
    print(f"{encoder_flops(encoder_config(args)) / 1e9:.4g} GFLOP a clip")
    for precision in PRECISIONS:
        wall, cpu = (
            {name: [each[of] for each in times[name, precision]] for name in names}
            for of in range(2)
        )
        report(args, precision, wall, cpu)


def report(
    args: argparse.Namespace,
    precision: str,
    wall: dict[str, list[float]],
    cpu: dict[str, list[float]],
) -> None:
    clips_per_second = {name: args.batch / statistics.median(each) for name, each in wall.items()}
    per_cpu = {name: args.batch / statistics.median(each) for name, each in cpu.items()}
    print(precision)
    for name in wall:
        other = "sincos" if name not in PEERS else f"ours of {name}"
        least, others = 1e3 * min(cpu[name]), 1e3 * min(cpu[other])
        print(
            f"{name:<22} {clips_per_second[name]:.3g} clips/s, {per_cpu[name]:.3g} by CPU time; "
            f"{other} is {clips_per_second[other] / clips_per_second[name]:.3f} x as fast, "
            f"{per_cpu[other] / per_cpu[name]:.3f} x by CPU time, {least / others:.3f} x by the "
            f"least of it ({others:.1f} ms, not {least:.1f})"
        )
    print(json.dumps({"clips_per_second": clips_per_second, "clips_per_cpu_second": per_cpu}))


if __name__ == "__main__":
    main()
