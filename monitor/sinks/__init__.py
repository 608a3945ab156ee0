"""Where events go, each with a queue of its own."""
