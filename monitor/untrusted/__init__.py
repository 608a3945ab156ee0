"""What a monitored process chose, made safe to show, to open and to keep."""
