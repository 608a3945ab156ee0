"""Attaches the programs and calibrates them: finds out what this kernel does, by trying it."""
