"""Models that can be opened: which there are, fetching one, and what a file is."""

from __future__ import annotations

import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vjepa.checkpoint.catalogue import MODELS, KnownModel, downloaded, models_folder
from vjepa.checkpoint.folder import file_sha256
from vjepa.checkpoint.load import read_encoder
from vjepa.errors import UserError, suggested
from vjepa.paths import as_path
from vjepa.runtime.download import download, token_of
from vjepa.runtime.files import atomic_write, written

_LOGGER = logging.getLogger(__name__)
_HUB = "https://huggingface.co"


def known(name: str) -> KnownModel:
    """A model of the table by its name; UserError with the nearest one."""
    if name not in MODELS:
        near = suggested(name, MODELS)
        raise UserError(f"{name}: no such model (`vjepa models list` names all){near}")
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
        ("address", "as public pages give it, never tried from here" * bool(addresses(model))),
        ("downloaded", str(downloaded(name)) if is_downloaded(name) else ""),
    ]
    return [line for line in lines if line[1]]


def addresses(model: KnownModel) -> list[tuple[str, str]]:
    """The files of a model, each with its address; none where it must be fetched by hand."""
    if model.url:
        return [(model.url.rpartition("/")[2], model.url)]
    hub = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    return [(file, f"{hub}/{model.hub}/resolve/main/{file}") for file in model.files]


def get(
    name: str, folder: str | Path | None = None, *, offline: bool = False, sha256: str = ""
) -> Path:
    """Fetch a model into the user's cache, or `folder`; its path, which `encoder.path` takes.

    What is there already stays. `offline` fetches nothing. `sha256` is the checksum that its
    largest file must have; else the one that the server names is compared, if it does. The
    checksum of what came is written beside each file. What lies at Hugging Face comes through
    huggingface_hub, if that is installed and no `folder` is named: into its cache, which other
    programs share, with a link in ours.

    Raises:
        UserError: Unknown, not to be fetched by a program, or as :func:`download`.
    """
    folder = None if folder is None else as_path(folder)
    model = known(name)
    through_hub = bool(model.files) and folder is None and find_spec("huggingface_hub") is not None
    place = models_folder() / name if folder is None else folder
    files = [(place / Path(file).name, url) for file, url in addresses(model)]
    if files and all(file.is_file() for file, _ in files):
        _LOGGER.info("%s is there already", name)
    elif not files:
        if folder is None and is_downloaded(name):
            _require_sum(downloaded(name), sha256)
            return downloaded(name)
        raise UserError(
            f"{name}: cannot be fetched by a program: {model.published}; give the path of the "
            f"file wherever a model is named, or put it into {place}"
        )
    elif offline and not (through_hub and _in_hub_cache(model)):
        raise UserError(
            f"{name}: is not in {place}, and --offline fetches nothing; fetch it where there is a "
            f"network ({files[-1][1]}) and give its path, or put it there"
        )
    else:
        _LOGGER.info("%s: %s", name, model.title)
        _LOGGER.info("licence of the weights: %s", model.licence)
    for file, url in files:
        wanted = sha256 if file == files[-1][0] else ""
        if file.is_file():
            _require_sum(file, wanted)
            continue
        if through_hub:
            found = _through_hub(model, url, file, wanted, offline=offline)
        else:
            _LOGGER.info("%s -> %s", url, file)
            found = download(url, file, sha256=wanted, token=token_of(url))
        atomic_write(file.with_name(f"{file.name}.sha256"), f"{found}  {file.name}\n")
        _LOGGER.info("%s: sha256 %s", file.name, found)
    return place if len(files) > 1 else files[0][0]


def _require_sum(file: Path, wanted: str) -> None:
    """Refuse a file that is there, if it has another checksum than the one that is given."""
    if wanted and file_sha256(file) != wanted.lower():
        raise UserError(
            f"{file}: is there already, with another checksum than {wanted[:16]}...; delete it and "
            "run the same command again"
        )


def _in_hub_cache(model: KnownModel) -> bool:
    """Whether huggingface_hub has all files of a model, perhaps fetched by another program."""
    from huggingface_hub import try_to_load_from_cache

    return all(isinstance(try_to_load_from_cache(model.hub, file), str) for file in model.files)


def _through_hub(model: KnownModel, url: str, file: Path, wanted: str, *, offline: bool) -> str:
    """Fetch a file through huggingface_hub, link it to `file`, and give its SHA-256.

    That library resumes, and checks the size; the checksum is compared here.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    broken: Any = HfHubHTTPError.__bases__[0]  # what the HTTP library of its version raises
    (stored,) = [name for name in model.files if Path(name).name == file.name]
    try:
        endpoint = os.environ.get("HF_ENDPOINT")
        came = Path(hf_hub_download(model.hub, stored, endpoint=endpoint, local_files_only=offline))
    except (OSError, broken) as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
        raise UserError(
            f"{url}: {reason}; what has come is kept: run the same command again, or fetch it by "
            "other means and give its path"
        ) from error
    _LOGGER.info("%s -> %s", url, came)
    blob, found = came.resolve(), file_sha256(came)
    # It names a large file by its checksum.
    wanted = (wanted or (blob.name if re.fullmatch(r"[0-9a-f]{64}", blob.name) else "")).lower()
    if wanted and found != wanted:
        came.unlink()
        blob.unlink(missing_ok=True)
        raise UserError(
            f"{url}: what came has another checksum than it should (sha256 {found[:16]}..., not "
            f"{wanted[:16]}...) and was deleted; run the same command again, and do not use the "
            "file if that does not help"
        )
    with written(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # a link to what is not there any more
        file.symlink_to(blob)
    return found


def check(path: str | Path, **how: Any) -> str:
    """What a file, folder or name holds, whether it fits, and what was assumed: the load report.

    It is loaded as everywhere else; the arguments are those of
    :func:`vjepa.checkpoint.read_encoder`. UserError: it cannot be opened, or does not fit.
    """
    path = as_path(path)
    encoder, report = read_encoder(path, **how)
    sizes = encoder.config
    count = sum(value.numel() for value in encoder.parameters())
    clip = "1 frame" if sizes.is_image_model else f"{sizes.num_frames} frames"
    end = (
        f"fits: an encoder of {count / 1e6:.1f} M parameters, {clip} of {sizes.image_size} px, "
        f"{sizes.num_tokens} tokens of width {sizes.width}"
    )
    return f"{report}\n{end}"
