-- The last events of an incident, as they were sent, the last one first; one that was sent twice may be there
-- twice.
SELECT
    id,
    event
FROM seal_monitor.records
WHERE fingerprint = {fingerprint:String}
ORDER BY time DESC, id DESC
LIMIT {limit:UInt32}
