"""A plain training step: the way of the authors' released code, as its behaviour is described.

Written from a description of what that code computes and in which order, not from the code. It is
what our step is compared with. Plain means: every token is embedded by a 3-D convolution and those
that are not shown are dropped afterwards; masks are cut to the shortest of the batch and go through
encoder and predictor one after the other; attention is torch's fused kernel; autocast with float32
weights and a gradient scaler; AdamW as torch chooses it; a loop over the parameters for the moving
average and for the gradient norms, whose values, like the loss, are read at every step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.masking import TokenMasks
from vjepa.models import VJEPA, ModelConfig
from vjepa.tasks import FeaturePrediction


class PlainAttention(nn.Module):
    """Self-attention; parameters are named as ours."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))


class PlainMlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class PlainBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = PlainAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = PlainMlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Tokens [B, N, D] at indices [B, K]: [B, K, D]."""
    return torch.gather(x, 1, indices[:, :, None].expand(-1, -1, x.shape[-1]))


class PlainPatchEmbed(nn.Module):
    """3-D convolution over the whole clip."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        e = config.encoder
        kernel = (e.tubelet_size, e.patch_size, e.patch_size)
        self.proj = nn.Conv3d(e.channels, e.width, kernel, stride=kernel)

    def forward(self, clips: Tensor) -> Tensor:
        return self.proj(clips).flatten(2).transpose(1, 2)


class PlainEncoder(nn.Module):
    """All tokens are embedded; those that are not shown are dropped then."""

    def __init__(self, config: ModelConfig, pos_embed: Tensor) -> None:
        super().__init__()
        e = config.encoder
        self.patch_embed = PlainPatchEmbed(config)
        self.register_buffer("pos_embed", pos_embed.clone(), persistent=False)
        self.blocks = nn.ModuleList(
            PlainBlock(e.width, e.heads, e.mlp_width) for _ in range(e.depth)
        )
        self.norm = nn.LayerNorm(e.width, eps=1e-6)

    def forward(self, clips: Tensor, indices: Tensor | None = None) -> Tensor:
        x = self.patch_embed(clips) + self.pos_embed
        if indices is not None:
            x = take(x, indices)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class PlainPredictor(nn.Module):
    """Context tokens and mask tokens, one mask at a time."""

    def __init__(self, config: ModelConfig, pos_embed: Tensor) -> None:
        super().__init__()
        p, wide = config.predictor, config.encoder.width
        heads = p.heads or config.encoder.heads
        self.predictor_embed = nn.Linear(wide, p.width)
        self.mask_tokens = nn.ParameterList(
            nn.Parameter(torch.zeros(1, 1, p.width)) for _ in range(p.num_mask_tokens)
        )
        self.register_buffer("predictor_pos_embed", pos_embed.clone(), persistent=False)
        self.predictor_blocks = nn.ModuleList(
            PlainBlock(p.width, heads, p.mlp_width) for _ in range(p.depth)
        )
        self.predictor_norm = nn.LayerNorm(p.width, eps=1e-6)
        self.predictor_proj = nn.Linear(p.width, wide)

    def forward(self, x: Tensor, context: Tensor, target: Tensor, kind: int) -> Tensor:
        batch, shown = context.shape
        code = self.predictor_pos_embed.repeat(batch, 1, 1)
        x = self.predictor_embed(x) + take(code, context)
        wanted = self.mask_tokens[kind].repeat(batch, code.shape[1], 1)
        x = torch.cat([x, take(wanted, target) + take(code, target)], dim=1)
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(x)[:, shown:])


class PlainTrainer:
    """The plain models and their training step, with the weights of one of our models.

    Args:
        model: Gives sizes and initial weights; copied.
        device: Where to train.
        bfloat16: Autocast to bfloat16; otherwise float32 throughout.
    """

    def __init__(
        self, model: VJEPA | FeaturePrediction, device: torch.device, *, bfloat16: bool
    ) -> None:
        config = model.config
        self.encoder = PlainEncoder(config, model.encoder.pos_embed)
        self.encoder.load_state_dict(model.encoder.state_dict())
        self.predictor = PlainPredictor(config, model.predictor.predictor_pos_embed)
        self.predictor.load_state_dict(model.predictor.state_dict())
        self.target = copy.deepcopy(self.encoder)
        self.target.load_state_dict(model.target_encoder.state_dict())
        for parameter in self.target.parameters():
            parameter.requires_grad = False
        for module in (self.encoder, self.predictor, self.target):
            module.to(device)
        self.device, self.bfloat16 = device, bfloat16
        trained = (self.encoder, self.predictor)
        groups = [
            {"params": [p for m in trained for n, p in m.named_parameters() if decayed(n, p)]},
            {"params": [p for m in trained for n, p in m.named_parameters() if not decayed(n, p)]},
        ]
        self.optimizer = torch.optim.AdamW(groups)
        self.scaler = torch.amp.GradScaler(device.type, enabled=bfloat16)

    def loss(self, clips: Tensor, masks: Sequence[TokenMasks]) -> Tensor:
        """The loss of a batch: clips float32 [B, C, T, H, W], normalised."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            with torch.no_grad():
                h = self.target(clips)
                h = F.layer_norm(h, (h.shape[-1],))
                targets = [take(h, mask.target) for mask in masks]
            z = [self.encoder(clips, mask.context) for mask in masks]
            z = [
                self.predictor(x, mask.context, mask.target, kind)
                for kind, (x, mask) in enumerate(zip(z, masks, strict=True))
            ]
            losses = [(a - b).abs().mean() for a, b in zip(z, targets, strict=True)]
        return sum(losses, torch.zeros((), device=self.device)) / len(losses)

    def step(
        self,
        clips: Tensor,
        masks: Sequence[TokenMasks],
        *,
        rate: float,
        decay: float,
        momentum: float,
        clip_norm: float | None = None,
    ) -> tuple[float, dict[str, float]]:
        """One update; the loss and the gradient norm of each module, read from the device."""
        for group, factor in zip(self.optimizer.param_groups, (1.0, 0.0), strict=True):
            group["lr"], group["weight_decay"] = rate, decay * factor
        loss = self.loss(clips, masks)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.encoder.parameters(), clip_norm)
            nn.utils.clip_grad_norm_(self.predictor.parameters(), clip_norm)
        norms = {
            name: sum(torch.norm(p.grad).item() ** 2 for p in m.parameters() if p.grad is not None)
            ** 0.5
            for name, m in (("encoder", self.encoder), ("predictor", self.predictor))
        }
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for online, average in zip(
                self.encoder.parameters(), self.target.parameters(), strict=True
            ):
                average.data.mul_(momentum).add_((1.0 - momentum) * online.detach().data)
        return loss.item(), norms


def decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies."""
    return parameter.ndim > 1 and "bias" not in name
