"""What a monitored process or a stranger chose, made safe to show, to open and to keep."""
