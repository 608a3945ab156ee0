-- The trail of one user over all hosts, in order.
SELECT
    time,
    host,
    kind,
    severity,
    fingerprint,
    executable,
    pid,
    summary,
    id
FROM seal_monitor.events
WHERE user_name = {user:String}
    AND time >= {since:DateTime64(9, 'UTC')}
    AND time <= {until:DateTime64(9, 'UTC')}
ORDER BY time, id
LIMIT {limit:UInt32}
