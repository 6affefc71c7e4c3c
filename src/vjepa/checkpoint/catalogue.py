"""Models that others have published and that can be opened: what each is, and what was proved.

One table, which reading, recipes, `vjepa models` and the documentation share. Sizes are those of
the released files; what a file says of itself goes before them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from vjepa.errors import UserError
from vjepa.models import PRESETS, VJEPA2_MODELS, EncoderConfig, InputConfig, authors_name

Family = Literal["vjepa", "videomae", "mvd", "omnimae", "hiera", "ijepa", "dinov2", "openclip"]
"""Models whose files have the same names; VideoMAE V2's are VideoMAE's, V-JEPA 2's V-JEPA's."""

CLIP_INPUT = InputConfig(
    mean=(0.48145466, 0.4578275, 0.40821073), deviation=(0.26862954, 0.26130258, 0.27577711)
)
HIERA_INPUT = InputConfig(mean=(0.45, 0.45, 0.45), deviation=(0.225, 0.225, 0.225))

_NON_COMMERCIAL = "CC BY-NC 4.0"
_BY_NUMBERS = (
    "a small file of this layout gives the recorded tokens; names and shapes of the real file fit"
)
_BY_REFERENCE = (
    "small files that the authors' code wrote give its numbers, forward and in training; "
)
_WEIGHTS = (".pt", ".pth", ".tar", ".torch", ".bin", ".safetensors")
_META = "https://dl.fbaipublicfiles.com/"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A published model that `encoder.path` can name or be a file of."""

    title: str  # as its authors call it
    paper: str
    family: Family
    encoder: EncoderConfig
    """Sizes, input size and normalisation; those of the token map where tokens are pooled."""
    licence: str  # of the weights
    url: str = ""  # where the file lies, if an address gives it
    hub: str = ""  # its repository on Hugging Face, if it lies there
    files: tuple[str, ...] = ()  # the files of that repository, the weights last
    published: str = ""
    """Where to find it, where no address gives it, and what else there is to know."""
    proved: str = _BY_NUMBERS  # what was compared; the real weights could not be
    rows: str = ""
    """Rows of the paper's comparison that it is for, and where it is not what they used."""

    @property
    def describes(self) -> str:
        """Its size and input in words."""
        sizes = self.encoder
        clip = "images" if sizes.is_image_model else f"{sizes.num_frames} frames"
        patch = f"{sizes.tubelet_size}x" * (not sizes.is_image_model)
        return (
            f"width {sizes.width}, {sizes.depth} blocks, {sizes.heads} heads, {clip} of "
            f"{sizes.image_size} px, tokens of {patch}{sizes.patch_size}x{sizes.patch_size}"
        )


_vit = partial(EncoderConfig, position="given")
_large, _huge = partial(_vit, width=1024), partial(_vit, width=1280, depth=32)
_giant = partial(_vit, width=1408, depth=40, mlp_ratio=48 / 11)
_image = partial(_vit, num_frames=1, tubelet_size=1)
_hiera = partial(_vit, patch_size=32, input=HIERA_INPUT, depth=48)
_IJEPA = partial(KnownModel, paper="arXiv 2301.08243", family="ijepa", licence=_NON_COMMERCIAL)
_OMNIMAE = partial(KnownModel, paper="arXiv 2206.08356", family="omnimae", licence=_NON_COMMERCIAL)
_VIDEOMAE = partial(
    KnownModel, paper="arXiv 2203.12602", family="videomae", licence=_NON_COMMERCIAL
)
_HIERA = partial(KnownModel, paper="arXiv 2306.00989", family="hiera", licence=_NON_COMMERCIAL)


def _first(size: str, pixels: int, file: str) -> KnownModel:
    """A model of V-JEPA."""
    return KnownModel(
        title=f"{authors_name(PRESETS[size])}, {pixels} pixels, VideoMix2M",
        paper="arXiv 2404.08471",
        family="vjepa",
        encoder=replace(PRESETS[size], image_size=pixels),
        licence=_NON_COMMERCIAL,
        url=f"{_META}jepa/{file}/{file}.pth.tar",
        proved=f"{_BY_REFERENCE}the real file was not seen",
    )


def _second(name: str, file: str, licence: str, hub: str = "") -> KnownModel:
    """A model of V-JEPA 2 or 2.1, in its authors' layout."""
    sizes = VJEPA2_MODELS[name].encoder
    is_new = sizes.levels != ()
    distilled = ", distilled from G" if is_new and "vitg" not in name.lower() else ""
    return KnownModel(
        title=f"{authors_name(sizes)}, {sizes.image_size} pixels{distilled}",
        paper="arXiv 2603.14482" if is_new else "arXiv 2506.09985",
        family="vjepa",
        encoder=sizes,
        licence=licence,
        url=f"{_META}vjepa2/{file}.pt",
        published=hub
        and f"also on Hugging Face: facebook/{hub} (its folder is read, too; it holds "
        "the context encoder)",
        proved=f"{_BY_REFERENCE}names and shapes of the real file, as its code makes them, fit",
    )


_UNSAID = "not found (the code's is MIT)"
_SAID_ELSEWHERE = "(said by another port of the weights; their own page was not seen)"

_SECOND = {
    "vjepa2_vitl16": ("vitl", f"MIT {_SAID_ELSEWHERE}", "vjepa2-vitl-fpc64-256"),
    "vjepa2_vith16": ("vith", f"Apache-2.0 {_SAID_ELSEWHERE}", "vjepa2-vith-fpc64-256"),
    "vjepa2_vitg16": ("vitg", _UNSAID, "vjepa2-vitg-fpc64-256"),
    "vjepa2_vitg16_384": ("vitg-384", "Apache-2.0", "vjepa2-vitg-fpc64-384"),
    "vjepa2_1_vitb16": ("vjepa2_1_vitb_dist_vitG_384", _UNSAID),
    "vjepa2_1_vitl16": ("vjepa2_1_vitl_dist_vitG_384", _UNSAID),
    "vjepa2_1_vitg16": ("vjepa2_1_vitg_384", _UNSAID),
    "vjepa2_1_vitG16": ("vjepa2_1_vitG_384", _UNSAID),
}
"""File, licence and repository of each."""

MODELS: dict[str, KnownModel] = {
    "vjepa_vitl16": _first("vitl16", 224, "vitl16"),
    "vjepa_vith16": _first("vith16", 224, "vith16"),
    "vjepa_vith16_384": _first("vith16", 384, "vith16-384"),
    **{name: _second(name, *row) for name, row in _SECOND.items()},
    "ijepa_vith16_448": _IJEPA(
        title="I-JEPA ViT-H/16, 448 pixels, ImageNet-1K",
        encoder=_image(width=1280, depth=32, image_size=448),
        url=f"{_META}ijepa/IN1K-vit.h.16-448px-300e.pth.tar",
        rows="Table 6; the paper's own, 512 pixels on ImageNet-22K, was never released",
    ),
    "ijepa_vith14": _IJEPA(
        title="I-JEPA ViT-H/14, ImageNet-1K",
        encoder=_image(width=1280, depth=32, patch_size=14),
        url=f"{_META}ijepa/IN1K-vit.h.14-300e.pth.tar",
        proved="a small file of this layout gives the recorded tokens; the real file was not seen",
    ),
    "openclip_vitbigg14": KnownModel(
        title="OpenCLIP ViT-bigG/14, laion2b_s39b_b160k",
        paper="arXiv 2212.07143",
        family="openclip",
        encoder=_image(
            width=1664, depth=48, mlp_ratio=8192 / 1664, patch_size=14, input=CLIP_INPUT
        ),
        licence="MIT",
        hub="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        files=("open_clip_pytorch_model.bin",),
        rows="Tables 6 and 13 (G/14)",
    ),
    "dinov2_vitg14": KnownModel(
        title="DINOv2 ViT-g/14",
        paper="arXiv 2304.07193",
        family="dinov2",
        encoder=_image(width=1536, depth=40, heads=24, mlp_ratio=4096 / 1536, patch_size=14),
        licence="Apache-2.0",
        url=f"{_META}dinov2/dinov2_vitg14/dinov2_vitg14_pretrain.pth",
        rows="Tables 6 and 13; the table of positions is for 518 pixels, 224 were used",
    ),
    "mvd_vitl16": KnownModel(
        title="MVD ViT-L/16, teacher L, 400 epochs of Kinetics-400",
        paper="arXiv 2212.04500",
        family="mvd",
        encoder=_large(),
        licence=_NON_COMMERCIAL,
        published="Google Drive, linked in the model zoo of github.com/ruiwang2021/mvd; those of "
        "800 epochs and H have no public file",
        rows="Tables 6 and 7",
    ),
    "omnimae_vitl16": _OMNIMAE(
        title="OmniMAE ViT-L/16",
        encoder=_large(),
        url=f"{_META}omnivore/omnimae_ckpts/vitl_pretrain.torch",
        rows="Table 5",
    ),
    "omnimae_vith14": _OMNIMAE(
        title="OmniMAE ViT-H/14",
        encoder=_huge(patch_size=14),
        url=f"{_META}omnivore/omnimae_ckpts/vith_pretrain.torch",
        rows="Table 6, which calls it H/16: the released H has patches of 14 pixels",
    ),
    "videomae_vitl16": _VIDEOMAE(
        title="VideoMAE ViT-L/16, 1600 epochs of Kinetics-400",
        encoder=_large(),
        hub="MCG-NJU/videomae-large",
        files=("config.json", "model.safetensors"),
        published="the authors' own file: Google Drive, linked in MODEL_ZOO.md of "
        "github.com/MCG-NJU/VideoMAE",
        rows="Tables 5, 12 and 14; the 410M samples of Table 5 are 2400 epochs of SSv2, whose L "
        "was not released",
    ),
    "videomae_vith16": _VIDEOMAE(
        title="VideoMAE ViT-H/16, 1600 epochs of Kinetics-400",
        encoder=_huge(),
        published="Google Drive, linked in MODEL_ZOO.md of github.com/MCG-NJU/VideoMAE",
        rows="Tables 6 and 7",
    ),
    "videomaev2_vitg14": KnownModel(
        title="VideoMAE V2 ViT-g/14, 1200 epochs",
        paper="arXiv 2303.16727",
        family="videomae",
        encoder=_giant(patch_size=14),
        licence=f"Apache-2.0 where the file lies, {_NON_COMMERCIAL} at OpenGVLab/VideoMAEv2-giant: "
        "the authors contradict themselves",
        hub="OpenGVLab/VideoMAE2",
        files=("mae-g/vit_g_hybrid_pt_1200e.pth",),
        rows="Tables 6 and 7",
    ),
    "hiera_l": _HIERA(
        title="Hiera-L, MAE on Kinetics-400",
        encoder=_hiera(width=1152),
        url=f"{_META}hiera/mae_hiera_large_16x224.pth",
        rows="Table 5",
    ),
    "hiera_h": _HIERA(
        title="Hiera-H, MAE on Kinetics-400",
        encoder=_hiera(width=2048, heads=32),
        url=f"{_META}hiera/mae_hiera_huge_16x224.pth",
        rows="Table 6",
    ),
}
"""By the name that `encoder.path` and `vjepa models` take."""


def models_folder() -> Path:
    """Where downloaded models lie: `VJEPA_MODELS`, or `vjepa/models` in the user's cache."""
    if given := os.environ.get("VJEPA_MODELS"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vjepa" / "models"


def downloaded(name: str) -> Path:
    """The file, or Hugging Face folder, of a known model that was downloaded.

    Raises:
        UserError: It was not.
    """
    model, folder = MODELS[name], models_folder() / name
    if folder.is_dir():
        if len(model.files) > 1 and all((folder / file).is_file() for file in model.files):
            return folder
        found = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
        if found:
            return found[0]
    where = model.url or model.hub or model.published
    get = f"`vjepa models get {name}`, or " if model.url or model.hub else ""
    raise UserError(
        f"{name}: {model.title} was not downloaded yet: {get}give the path of its file "
        f"(published: {where})"
    )
