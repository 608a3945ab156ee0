"""The errors of the web server and its configuration, in a module that imports nothing."""

from __future__ import annotations

__all__ = ["AddressError", "WebError"]


class WebError(Exception):
    """The address cannot be listened on, or the web config file is wrong."""


class AddressError(WebError):
    """The address cannot be listened on now; another program may have it."""
