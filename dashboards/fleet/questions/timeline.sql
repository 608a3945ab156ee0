-- What one host reported, in order. The grouping leaves out what was sent twice; by seal_monitor.events, ClickHouse
-- would not use the projection for it.
SELECT
    time,
    kind,
    severity,
    fingerprint,
    what,
    executable,
    workload,
    user_name,
    pid,
    summary,
    id
FROM seal_monitor.records
WHERE host = {host:String}
    AND time >= {since:DateTime64(9, 'UTC')}
    AND time <= {until:DateTime64(9, 'UTC')}
GROUP BY time, kind, severity, fingerprint, what, executable, workload, user_name, pid, summary, id
ORDER BY time, id
LIMIT {limit:UInt32}
