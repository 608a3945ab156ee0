"""Modules of a library without what its package imports besides.

structlog's and prometheus_client's packages import an event loop, HTTP servers and clients and TLS,
of which nothing is used here: 10 MiB in a daemon that is to need 22.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec

__all__ = ["parts_of"]


@contextlib.contextmanager
def parts_of(package: str) -> Iterator[None]:
    """Within it, modules of the package are imported and its own `__init__` is not run.

    They belong to the importer alone: whoever imports the package later gets it whole. A package
    that is there already is taken as it is.
    """
    spec = None if package in sys.modules else find_spec(package)
    if spec is None:  # where it is not installed, the import itself raises
        yield
        return
    sys.modules[package] = module_from_spec(spec)
    try:
        yield
    finally:
        for name in list(sys.modules):
            if name == package or name.startswith(f"{package}."):
                del sys.modules[name]
