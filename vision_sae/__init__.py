"""Find, explain and steer what the insides of a vision model mean.

Importing this package is light: torch is imported by the modules that need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_sae.dictionaries.released.registry import load_dictionary

__version__ = "0.1.0"
__all__ = ["__version__", "load_dictionary"]

_HOMES = {"load_dictionary": "vision_sae.dictionaries.released.registry"}
"""{public name: the module that defines it}"""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
