-- The hosts of an incident, the first one first.
SELECT
    host,
    host_id,
    min(time) AS first_seen,
    max(time) AS last_seen,
    sum(events) AS delivered,
    sum(suppressed) AS held_back
FROM seal_monitor.events
WHERE fingerprint = {fingerprint:String}
GROUP BY host_id, host
ORDER BY first_seen, host
LIMIT {limit:UInt32}
