"""What this host is, and what can be monitored on it."""
