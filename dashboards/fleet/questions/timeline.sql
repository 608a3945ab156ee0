-- What one host reported, in order.
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
FROM seal_monitor.host_events
WHERE host = {host:String}
    AND time >= {since:DateTime64(9, 'UTC')}
    AND time <= {until:DateTime64(9, 'UTC')}
ORDER BY time, id
LIMIT {limit:UInt32}
