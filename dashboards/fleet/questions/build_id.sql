-- The executables in whose violations a build was involved, as the executable itself or in the stack.
SELECT
    executable,
    count(DISTINCT host_key) AS hosts,
    count(DISTINCT fingerprint) AS incidents,
    sum(events) AS delivered,
    min(time) AS first_seen,
    max(time) AS last_seen
FROM seal_monitor.events
WHERE has(build_ids, {build_id:String})
GROUP BY executable
ORDER BY hosts DESC, executable
LIMIT {limit:UInt32}
