"""What outlives the process: the attached programs and the daemon's own counts, kept by systemd."""
