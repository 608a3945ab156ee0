-- Who may do what, in ClickHouse; run it after clickhouse.sql, by a user who may grant. Then:
--   CREATE USER collector IDENTIFIED BY '...' DEFAULT ROLE seal_monitor_writer
--   CREATE USER analyst IDENTIFIED BY '...' DEFAULT ROLE seal_monitor_reader

CREATE ROLE IF NOT EXISTS seal_monitor_writer;
GRANT INSERT, SHOW COLUMNS ON seal_monitor.inbox TO seal_monitor_writer;

-- A reader changes nothing (2: but may choose settings within these bounds, which drivers do), and no
-- question of his takes the server from others.
CREATE ROLE IF NOT EXISTS seal_monitor_reader SETTINGS
    readonly = 2, max_execution_time = 60 MAX 60, max_memory_usage = 4000000000 MAX 4000000000;
GRANT SELECT ON seal_monitor.events TO seal_monitor_reader;
GRANT SELECT ON seal_monitor.records TO seal_monitor_reader;
GRANT SELECT ON seal_monitor.host_events TO seal_monitor_reader;
GRANT SELECT ON seal_monitor.host_records TO seal_monitor_reader;
