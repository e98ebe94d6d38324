"""A client for a vision_sae server: blocking and asyncio calls, a command line, heat maps over
pictures, and a web page. It needs no torch.

Importing this package is light: gRPC and NumPy are imported when one of its names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_sae_client.aio import AsyncClient
    from vision_sae_client.client import Client
    from vision_sae_client.errors import ClientError

_MODULES = {"AsyncClient": "aio", "Client": "client", "ClientError": "errors"}
"""{public name: the module of this package that defines it}"""

__all__ = ["AsyncClient", "Client", "ClientError"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
