"""What outlives a turn of the daemon: a reload, the run before, the service manager."""
