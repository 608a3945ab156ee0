-- In what the delivered events of some incidents differ: how many have which host, user and so on, the most
-- frequent first.
SELECT fingerprint, name, value, number
FROM
(
    SELECT
        fingerprint,
        name,
        value,
        number,
        row_number() OVER (PARTITION BY fingerprint, name ORDER BY number DESC, value) AS place
    FROM
    (
        SELECT
            fingerprint,
            CASE
                WHEN grouping(host) = 0 THEN 'host'
                WHEN grouping(workload) = 0 THEN 'workload'
                WHEN grouping(user_name) = 0 THEN 'user'
                WHEN grouping(verdict) = 0 THEN 'verdict'
                WHEN grouping(likely) = 0 THEN 'likely'
                WHEN grouping(disposition) = 0 THEN 'disposition'
                WHEN grouping(doubt) = 0 THEN doubt
                ELSE 'executable'
            END AS name,
            CASE
                WHEN grouping(host) = 0 THEN host
                WHEN grouping(workload) = 0 THEN workload
                WHEN grouping(user_name) = 0 THEN user_name
                WHEN grouping(verdict) = 0 THEN verdict
                WHEN grouping(likely) = 0 THEN likely
                WHEN grouping(disposition) = 0 THEN disposition
                ELSE executable
            END AS value,
            count(*) AS number
        FROM
        (
            SELECT
                fingerprint, host, workload, user_name, verdict, likely, disposition, executable,
                CASE
                    WHEN files IN ('', 'host') OR executable NOT LIKE '%/%' THEN ''
                    WHEN files = 'namespace' THEN 'in_namespace'
                    ELSE 'not_verified'
                END AS doubt
            FROM seal_monitor.events
            WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1
        ) AS chosen
        GROUP BY GROUPING SETS (
            (fingerprint, host), (fingerprint, workload), (fingerprint, user_name), (fingerprint, verdict),
            (fingerprint, likely), (fingerprint, disposition), (fingerprint, executable),
            (fingerprint, doubt, executable))
    ) AS each
    WHERE value <> '' AND name <> ''
) AS ordered
WHERE place <= {limit:UInt32}
ORDER BY fingerprint, name, place
