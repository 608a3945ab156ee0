"""Imports modules of a library without all that the library's package imports.

structlog's and prometheus_client's packages import an event loop, HTTP servers and clients and TLS.
Nothing of that is used here: it would be 10 MiB in a daemon that needs 22.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec

__all__ = ["parts_of"]


@contextlib.contextmanager
def parts_of(package: str) -> Iterator[None]:
    """In this context, modules of the package are imported without running its `__init__`.

    Only the importer has these modules: a later import of the package elsewhere gets all of it. A
    package that is imported already is used as it is.
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
