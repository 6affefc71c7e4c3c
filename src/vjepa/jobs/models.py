"""Models that can be opened: which there are, fetching one, and what a file is."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from vjepa.checkpoint.catalogue import MODELS, KnownModel, downloaded, models_folder
from vjepa.checkpoint.folder import Tokens, Which
from vjepa.checkpoint.load import read_encoder
from vjepa.config import nearest
from vjepa.errors import UserError
from vjepa.runtime.download import download, token_of
from vjepa.runtime.files import atomic_write

_LOGGER = logging.getLogger(__name__)
_HUB = "https://huggingface.co"


def known(name: str) -> KnownModel:
    """A model of the table by its name; UserError with the nearest one."""
    if name not in MODELS:
        near = nearest(name, MODELS)
        meant = f"did you mean {near}? " if near else ""
        raise UserError(f"{name}: no such model; {meant}`vjepa models list` names all")
    return MODELS[name]


def is_downloaded(name: str) -> bool:
    """Whether a model of the table lies in the user's cache."""
    try:
        downloaded(name)
    except UserError:
        return False
    return True


def overview() -> list[tuple[str, str, str, str, str]]:
    """A row for each model: name, title, input, licence, how to get it."""
    rows = []
    for name, model in MODELS.items():
        sizes = model.encoder
        clip = "" if sizes.is_image_model else f"{sizes.num_frames} x "
        how = "downloaded" if is_downloaded(name) else "get" if addresses(model) else "by hand"
        rows.append((name, model.title, f"{clip}{sizes.image_size} px", model.licence, how))
    return rows


def describe(name: str) -> list[tuple[str, str]]:
    """All that the table says of one model: what it is called, and what it is."""
    model = known(name)
    where = "; ".join(filter(None, (*(url for _, url in addresses(model)), model.published)))
    lines = [
        ("model", model.title),
        ("paper", model.paper),
        ("size", model.describes),
        ("licence", f"of the weights: {model.licence}"),
        ("published", where),
        ("proved", model.proved),
        ("for", model.rows),
    ]
    if is_downloaded(name):
        lines.append(("downloaded", str(downloaded(name))))
    return [line for line in lines if line[1]]


def addresses(model: KnownModel) -> list[tuple[str, str]]:
    """The files of a model, each with its address; none where it must be fetched by hand."""
    if model.url:
        return [(model.url.rpartition("/")[2], model.url)]
    hub = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    return [(file, f"{hub}/{model.hub}/resolve/main/{file}") for file in model.files]


def get(name: str, folder: Path | None = None, *, offline: bool = False, sha256: str = "") -> Path:
    """Fetch a model into the user's cache, or `folder`; its path, which `encoder.path` takes.

    What is there already stays. `offline` fetches nothing. `sha256` is the checksum that its
    largest file must have; else the one that the server names is compared, if it does. The
    checksum of what came is written beside each file.

    Raises:
        UserError: Unknown, not to be fetched by a program, or as :func:`download`.
    """
    model = known(name)
    place = models_folder() / name if folder is None else folder
    files = [(place / Path(file).name, url) for file, url in addresses(model)]
    if is_there := bool(files) and all(file.is_file() for file, _ in files):
        _LOGGER.info("%s is there already", name)
    elif not files:
        if folder is None and is_downloaded(name):
            return downloaded(name)
        raise UserError(
            f"{name}: cannot be fetched by a program: {model.published}; give the path of the "
            f"file wherever a model is named, or put it into {place}"
        )
    elif offline:
        raise UserError(
            f"{name}: is not in {place}, and --offline fetches nothing; fetch it where there is a "
            f"network ({files[-1][1]}) and give its path, or put it there"
        )
    else:
        _LOGGER.info("%s: %s", name, model.title)
        _LOGGER.info("licence of the weights: %s", model.licence)
    for file, url in files if not is_there else ():
        if file.is_file():
            continue
        _LOGGER.info("%s -> %s", url, file)
        wanted = sha256 if file == files[-1][0] else ""
        found = download(url, file, sha256=wanted, token=token_of(url))
        atomic_write(file.with_name(f"{file.name}.sha256"), f"{found}  {file.name}\n")
        _LOGGER.info("%s: sha256 %s", file.name, found)
    return place if len(files) > 1 else files[0][0]


def check(
    path: Path,
    which: Which = "target",
    *,
    num_heads: int | None = None,
    image_size: int | None = None,
    num_frames: int | None = None,
    tokens: Tokens | None = None,
) -> str:
    """What a file, folder or name holds, whether it fits, and what was assumed: the load report.

    It is loaded as everywhere else; the arguments are those of
    :func:`vjepa.checkpoint.read_encoder`.

    Raises:
        UserError: It cannot be opened, or does not fit.
    """
    encoder, report = read_encoder(
        path,
        which,
        num_heads,
        image_size=image_size,
        num_frames=num_frames,
        tokens=tokens,
    )
    sizes = encoder.config
    count = sum(value.numel() for value in encoder.parameters())
    clip = "1 frame" if sizes.is_image_model else f"{sizes.num_frames} frames"
    end = (
        f"fits: an encoder of {count / 1e6:.1f} M parameters, {clip} of {sizes.image_size} px, "
        f"{sizes.num_tokens} tokens of width {sizes.width}"
    )
    return f"{report}\n{end}"
