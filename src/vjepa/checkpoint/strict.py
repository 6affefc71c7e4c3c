"""What a checkpoint held, what the model wanted, and how they met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vjepa.errors import UserError

_SHOWN = 8


@dataclass(frozen=True)
class LoadReport:
    """The outcome of comparing a file with a model, tensor by tensor; print it.

    Loading is strict: a report that reaches the caller has nothing missing, unexpected or resized.

    Attributes:
        source: The file or folder.
        kind: What was recognised in it.
        matched: Tensors that were loaded.
        missing: Tensors that the model has and the file has not.
        unexpected: Tensors that the file has and the model has not.
        resized: Tensors of another shape in the file, as "name: file [..], model [..]".
        dropped: Tensors that the file has and that are rightly not loaded (fixed position codes,
            which are computed; a projection that the authors store and never apply).
        notes: What was inferred from the shapes, and how.
    """

    source: str
    kind: str
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether file and model fit exactly."""
        return not (self.missing or self.unexpected or self.resized)

    def require_complete(self) -> None:
        """Refuse a file that does not fit.

        Raises:
            UserError: Something is missing, unexpected or of another shape.
        """
        if self.is_complete:
            return
        faults = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.resized,
        }
        said = "; ".join(f"{len(v)} {k} ({_listed(v)})" for k, v in faults.items() if v)
        raise UserError(
            f"{self.source}: does not fit the model: {said}; nothing was loaded, use the file that "
            "belongs to this architecture"
        )

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.kind}", f"  matched     {len(self.matched)} tensors"]
        for name in ("missing", "unexpected", "resized", "dropped"):
            found: tuple[str, ...] = getattr(self, name)
            lines.append(f"  {name:<11} {len(found)}" + (f": {_listed(found)}" if found else ""))
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _listed(names: Sequence[str]) -> str:
    """Some names for a message."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def compare(
    source: str,
    kind: str,
    stored: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    *,
    dropped: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> LoadReport:
    """Compare names and shapes of a file's tensors with a model's.

    Args:
        source: The file or folder, for the report.
        kind: What it is, for the report.
        stored: The file's tensors.
        wanted: The model's, meta tensors will do.
        dropped: Names left out of `stored` on purpose.
        notes: Lines for the report.

    Returns:
        The report; it may be incomplete.
    """
    common = [name for name in wanted if name in stored]
    resized = [
        f"{name}: file {list(stored[name].shape)}, model {list(wanted[name].shape)}"
        for name in common
        if stored[name].shape != wanted[name].shape
    ]
    return LoadReport(
        source=source,
        kind=kind,
        matched=tuple(name for name in common if stored[name].shape == wanted[name].shape),
        missing=tuple(name for name in wanted if name not in stored),
        unexpected=tuple(name for name in stored if name not in wanted),
        resized=tuple(resized),
        dropped=tuple(dropped),
        notes=tuple(notes),
    )


def fill(module: nn.Module, stored: Mapping[str, Tensor], report: LoadReport) -> None:
    """Put a file's tensors into a module built on the meta device.

    Args:
        module: Its parameters are replaced; buffers that are not saved stay as they are.
        stored: The file's tensors; they are copied, as float32, so that the file can go away.
        report: Their comparison.

    Raises:
        UserError: The report is not complete; the module is untouched.
    """
    report.require_complete()
    copies = {name: tensor.detach().float().clone() for name, tensor in stored.items()}
    module.load_state_dict(copies, strict=True, assign=True)
