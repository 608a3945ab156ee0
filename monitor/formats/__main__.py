"""Prints docs/formats.md."""

import sys

from monitor.formats.page import page

sys.stdout.write(page())
