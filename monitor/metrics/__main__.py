"""Prints docs/metrics.md."""

import sys

from monitor.metrics.page import page

sys.stdout.write(page())
