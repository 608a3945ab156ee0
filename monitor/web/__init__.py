"""Metrics, health and readiness over HTTP, and who may ask."""
