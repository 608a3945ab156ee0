"""Events kept and grouped, with what their processes were like."""
