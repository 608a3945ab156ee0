"""Finds the names of functions for the frames of a stack."""
