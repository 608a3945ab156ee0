"""What outlives a turn of the daemon: reloads, losses, word for the next run, systemd."""
