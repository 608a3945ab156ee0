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
        SELECT fingerprint, 'host' AS name, host AS value, count(*) AS number
        FROM seal_monitor.events WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1
        GROUP BY fingerprint, host
        UNION ALL
        SELECT fingerprint, 'executable' AS name, executable AS value, count(*) AS number
        FROM seal_monitor.events WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1
        GROUP BY fingerprint, executable
        UNION ALL
        SELECT fingerprint, 'workload' AS name, workload AS value, count(*) AS number
        FROM seal_monitor.events WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1
        GROUP BY fingerprint, workload
        UNION ALL
        SELECT fingerprint, 'user' AS name, user_name AS value, count(*) AS number
        FROM seal_monitor.events WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1
        GROUP BY fingerprint, user_name
        UNION ALL
        SELECT fingerprint, 'verdict' AS name, verdict AS value, count(*) AS number
        FROM seal_monitor.events WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1
        GROUP BY fingerprint, verdict
        UNION ALL
        SELECT fingerprint, 'likely' AS name, likely AS value, count(*) AS number
        FROM seal_monitor.events WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1
        GROUP BY fingerprint, likely
        UNION ALL
        SELECT fingerprint, 'disposition' AS name, disposition AS value, count(*) AS number
        FROM seal_monitor.events WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1
        GROUP BY fingerprint, disposition
        UNION ALL
        SELECT
            fingerprint,
            CASE files WHEN 'namespace' THEN 'in_namespace' ELSE 'not_verified' END AS name,
            executable AS value,
            count(*) AS number
        FROM seal_monitor.events
        WHERE has({fingerprints:Array(String)}, fingerprint) AND events = 1
            AND files NOT IN ('', 'host') AND executable LIKE '%/%'
        GROUP BY fingerprint, files, executable
    ) AS each
    WHERE value <> ''
) AS ordered
WHERE place <= {limit:UInt32}
ORDER BY fingerprint, name, place
