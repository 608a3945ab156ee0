"""Events kept and grouped as incidents, with snapshots of their processes."""
