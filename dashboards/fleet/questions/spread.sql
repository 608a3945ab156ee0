-- The spread of an incident by hour: on how many hosts it was seen, and on how many for the first time.
SELECT
    date_trunc('hour', time) AS hour,
    count(DISTINCT host_key) AS hosts,
    count(DISTINCT CASE WHEN date_trunc('hour', time) = date_trunc('hour', first_time) THEN host_key END) AS new_hosts,
    sum(count) AS violations
FROM
(
    SELECT
        host_key,
        time,
        events + suppressed AS count,
        min(time) OVER (PARTITION BY host_key) AS first_time
    FROM seal_monitor.events
    WHERE fingerprint = {fingerprint:String}
) AS each
GROUP BY date_trunc('hour', time)
ORDER BY hour DESC
LIMIT {limit:UInt32}
