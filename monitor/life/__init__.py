"""What is outside a turn of the daemon's loop: reloads, the run before, the service manager."""
