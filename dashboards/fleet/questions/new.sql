-- Incidents that no host had before, first seen in this time, the first one last.
SELECT
    fingerprint,
    min(e.kind) AS kind,
    min(e.what) AS what,
    max(rank) AS worst,
    min(time) AS first_seen,
    count(DISTINCT host_key) AS hosts,
    sum(events + suppressed) AS violations
FROM seal_monitor.events AS e
WHERE has({kinds:Array(String)}, e.kind)
GROUP BY fingerprint
HAVING min(time) >= {since:DateTime64(9, 'UTC')}
    AND min(time) <= {until:DateTime64(9, 'UTC')}
ORDER BY first_seen DESC, fingerprint
LIMIT {limit:UInt32}
