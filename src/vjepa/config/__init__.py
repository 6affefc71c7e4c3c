"""The configuration mechanism: strict YAML -> typed frozen dataclasses, overrides, dump.

It knows no other room: a config dataclass stands beside the class that it builds, and the jobs
compose them. A config dataclass is ``@dataclass(frozen=True, kw_only=True)`` with fields of type
int, float, bool, str, Path, Literal, ``X | None``, tuple, another config dataclass or a tuple of
them; a docstring under each field says what it means; ``__post_init__`` refuses bad values with a
``ValueError`` whose message begins with the field's name.

Why an own mechanism, on PyYAML and argparse, and no configuration library. What users trip over
is a wrong setting that is silently ignored, so the messages decide: one line with the file that
holds the mistake, the dotted field, the value and the nearest valid name; the same for a file and
for the command line; the same for an unknown name, a wrong type and a value that ``__post_init__``
refuses. Of the libraries tried, jsonargparse came closest, but does not name the file of an
unknown key, prints a traceback for a refused value, accepts duplicate YAML keys and knows no
index into a list (``masking.masks.0.num_blocks``); mending these from outside took more code than
the few hundred lines here, which also start without a visible delay.
"""

from vjepa.config.conversion import diff, dump_yaml, from_dict, to_dict
from vjepa.config.loading import load_config, recipe_names, recipe_path
from vjepa.config.schema import REQUIRED, Setting, settings

__all__ = [
    "REQUIRED",
    "Setting",
    "diff",
    "dump_yaml",
    "from_dict",
    "load_config",
    "recipe_names",
    "recipe_path",
    "settings",
    "to_dict",
]
