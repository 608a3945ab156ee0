"""Where events go; each sink has its own queue."""
