"""TOML and flags become one frozen object; every mistake is a clear message."""
