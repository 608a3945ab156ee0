"""Small real violations, for the canary, the demo and the tests."""
