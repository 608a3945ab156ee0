"""The command `seal-monitor`. An interrupt ends it without a word while it imports the rest."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> int:
    """See monitor.cli.main()."""
    from monitor.cli import main as command  # noqa: PLC0415 - it takes a tenth of a second

    return command()


if __name__ == "__main__":
    sys.exit(main())
