"""The incidents of many hosts, from the database of dashboards/fleet."""
