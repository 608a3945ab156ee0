-- The last event of some incidents, as it was sent.
SELECT
    fingerprint,
    event
FROM seal_monitor.records
WHERE (fingerprint, time) IN (
        SELECT fingerprint, max(time) FROM seal_monitor.records
        WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1 GROUP BY fingerprint)
    AND has({fingerprints:Array(String)}, fingerprint)
    AND events = 1
ORDER BY fingerprint, id
LIMIT {limit:UInt32}
