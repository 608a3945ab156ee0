-- Incidents of all hosts, the worst first. Patterns are regular expressions, '' for any; an incident matches
-- when one of its events does. fingerprint: how the id begins, as in '381c%'; '%' for any. kinds: such as ['denial', 'fault', 'bypass']; rank: 0 info, 1 warning, 2 critical.
SELECT
    fingerprint,
    min(e.kind) AS kind,
    min(e.what) AS what,
    max(rank) AS worst,
    min(time) AS first_seen,
    max(time) AS last_seen,
    sum(events) AS delivered,
    sum(suppressed) AS held_back,
    count(DISTINCT host_key) AS hosts
FROM seal_monitor.events AS e
WHERE has({kinds:Array(String)}, e.kind)
    AND e.fingerprint LIKE {fingerprint:String}
    AND ({operation:String} = '' OR match(e.what, {operation:String}))
GROUP BY fingerprint
HAVING max(time) >= {since:DateTime64(9, 'UTC')}
    AND min(time) <= {until:DateTime64(9, 'UTC')}
    AND max(rank) >= {rank:UInt8}
    AND max(CASE WHEN ({host:String} = '' OR match(host, {host:String})) THEN 1 ELSE 0 END) = 1
    AND max(CASE WHEN ({executable:String} = '' OR match(executable, {executable:String})) THEN 1 ELSE 0 END) = 1
    AND max(CASE WHEN ({workload:String} = '' OR match(workload, {workload:String})
        OR user_slice <> '' AND match(user_slice, {workload:String})) THEN 1 ELSE 0 END) = 1
    AND max(CASE WHEN ({verdict:String} = '' OR match(verdict, {verdict:String})) THEN 1 ELSE 0 END) = 1
    AND max(CASE WHEN ({likely:String} = '' OR match(likely, {likely:String})) THEN 1 ELSE 0 END) = 1
ORDER BY worst DESC, last_seen DESC, fingerprint
LIMIT {limit:UInt32}
