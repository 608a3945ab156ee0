-- How far an incident has spread: one row.
SELECT
    count(DISTINCT host_key) AS hosts,
    count(DISTINCT workload) AS workloads,
    count(DISTINCT executable) AS executables,
    count(DISTINCT user_name) AS users,
    min(time) AS first_seen,
    max(time) AS last_seen,
    sum(events) AS delivered,
    sum(suppressed) AS held_back
FROM seal_monitor.events
WHERE fingerprint = {fingerprint:String}
