"""What a checkpoint holds, what the model wants, and how they meet: the one strict comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vjepa.errors import UserError

_SHOWN = 8
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
Shape = Sequence[int]


@dataclass(frozen=True)
class LoadReport:
    """The outcome of comparing a file with a model, tensor by tensor; print it.

    Loading is strict: a report that reaches the caller has nothing missing, unexpected or resized.
    """

    source: str  # the file or folder
    kind: str  # what was recognised in it
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()  # the model has them, the file has not
    unexpected: tuple[str, ...] = ()  # the file has them, the model has not
    resized: tuple[str, ...] = ()
    """Tensors of another shape in the file, as "name: file [..], model [..]"."""
    dropped: tuple[str, ...] = ()
    """Tensors that the file has and that are rightly not loaded (fixed position codes, which are
    computed; a projection that the authors store and never apply)."""
    notes: tuple[str, ...] = ()  # what was inferred from the shapes, and how
    title: str = ""  # which published model of others it is; empty: V-JEPA
    assumed: tuple[str, ...] = ()
    """What neither the file nor the caller says, each with the option that says it."""

    @property
    def is_complete(self) -> bool:
        """Whether file and model fit exactly."""
        return not (self.missing or self.unexpected or self.resized)

    def require_complete(self, remedy: str) -> None:
        """Refuse a file that does not fit."""
        if self.is_complete:
            return
        faults = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.resized,
        }
        said = "; ".join(f"{len(v)} {k} ({_listed(v)})" for k, v in faults.items() if v)
        raise UserError(f"{self.source}: does not fit the model: {said}; {remedy}")

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.kind}", f"  matched     {len(self.matched)} tensors"]
        for name in ("missing", "unexpected", "resized", "dropped"):
            found: tuple[str, ...] = getattr(self, name)
            lines.append(f"  {name:<11} {len(found)}" + (f": {_listed(found)}" if found else ""))
        notes = [*self.notes, *(f"assumed     {what}" for what in self.assumed)]
        return "\n".join([*lines, *(f"  {note}" for note in notes)])


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def compare(
    source: str,
    kind: str,
    stored: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    dropped: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> LoadReport:
    """Compare names and shapes of a file's tensors with a model's; the report may be incomplete."""
    common = [name for name in wanted if name in stored]
    resized = [name for name in common if list(stored[name]) != list(wanted[name])]
    return LoadReport(
        source=source,
        kind=kind,
        matched=tuple(name for name in common if name not in resized),
        missing=tuple(name for name in wanted if name not in stored),
        unexpected=tuple(name for name in stored if name not in wanted),
        resized=tuple(
            f"{name}: file {list(stored[name])}, model {list(wanted[name])}" for name in resized
        ),
        dropped=tuple(dropped),
        notes=tuple(notes),
    )


def plain_name(name: str) -> str:
    """A tensor's name without what compiling and the wrappers of parallel training put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def plain_names(names: Iterable[str], source: str, front: str = "") -> dict[str, str]:
    """Names by :func:`plain_name` and without `front`; two that become one are refused."""
    plain: dict[str, str] = {}
    for name in names:
        short = plain_name(name).removeprefix(front)
        if short in plain:
            raise UserError(
                f"{source}: holds both {plain[short]} and {name}; save the model without wrappers"
            )
        plain[short] = name
    return plain


def require_finite(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity: every feature would be NaN."""
    for name, tensor in tensors.items():
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise UserError(
                f"{source}: {name} holds {bad} of {tensor.numel()} numbers that are not finite: "
                "that training diverged; take an earlier checkpoint of it"
            )


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Names and shapes, for :func:`compare`."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def load_strictly(
    module: nn.Module,
    stored: Mapping[str, Tensor],
    source: str,
    kind: str,
    *,
    dropped: Sequence[str] = (),
    notes: Sequence[str] = (),
    remedy: str = "nothing was loaded, use the file that belongs to this architecture",
) -> LoadReport:
    """Put a file's tensors into a module, which may stand on the meta device.

    The module gets copies, floating point as float32, so that the file can go away; buffers that
    are not saved stay as they are. The other arguments are those of the report.

    Raises:
        UserError: Something is missing, unexpected, of another shape or not finite; the module is
            untouched.
    """
    report = compare(source, kind, shapes(stored), shapes(module.state_dict()), dropped, notes)
    report.require_complete(remedy)
    require_finite(source, stored)
    copies = {
        # Counters such as a batch norm's are whole numbers and stay so: they are in a weights hash.
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().clone()
        for name, tensor in stored.items()
    }
    module.load_state_dict(copies, strict=True, assign=True)
    return report
