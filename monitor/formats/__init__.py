"""Events in the forms of others: OpenTelemetry, the Elastic Common Schema, OCSF."""
