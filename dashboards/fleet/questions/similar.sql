-- Other incidents of the executables of an incident, those on most hosts first.
SELECT
    fingerprint,
    min(e.kind) AS kind,
    min(e.what) AS what,
    max(rank) AS worst,
    count(DISTINCT host_key) AS hosts,
    sum(events + suppressed) AS violations,
    min(time) AS first_seen,
    max(time) AS last_seen
FROM seal_monitor.events AS e
WHERE executable IN (
        SELECT executable FROM seal_monitor.events WHERE fingerprint = {fingerprint:String} AND executable <> '')
    AND fingerprint <> {fingerprint:String}
GROUP BY fingerprint
ORDER BY hosts DESC, fingerprint
LIMIT {limit:UInt32}
