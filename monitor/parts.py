"""Imports modules of a library without all that the library imports.

structlog's and prometheus_client's packages import an event loop, HTTP servers and clients and TLS,
and http.client imports TLS. Where nothing of that is used, it would be 10 MiB in a daemon that
needs 22.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec

__all__ = ["parts_of", "without"]


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


@contextlib.contextmanager
def without(optional: str, module: str) -> Iterator[None]:
    """In this context, `module` is imported as where the other one is not installed.

    Only the importer has this module: a later import elsewhere gets all of it. Where either is
    imported already, that is used.
    """
    if optional in sys.modules or module in sys.modules:
        yield
        return
    sys.modules[optional] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        del sys.modules[optional]
        sys.modules.pop(module, None)
