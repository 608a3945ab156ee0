"""Makes text and files that a monitored process or a stranger chose safe to show, open and keep."""
