-- Who may do what, in PostgreSQL; run it after postgresql.sql, by an owner who may make roles. Then:
--   CREATE ROLE collector LOGIN PASSWORD '...' IN ROLE seal_monitor_writer
--   CREATE ROLE analyst LOGIN PASSWORD '...' IN ROLE seal_monitor_reader;
--   ALTER ROLE analyst SET statement_timeout = '60s'

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'seal_monitor_writer') THEN
        CREATE ROLE seal_monitor_writer NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'seal_monitor_reader') THEN
        CREATE ROLE seal_monitor_reader NOLOGIN;
    END IF;
END
$$;
GRANT USAGE ON SCHEMA seal_monitor TO seal_monitor_writer, seal_monitor_reader;
GRANT INSERT ON seal_monitor.inbox TO seal_monitor_writer;
GRANT SELECT ON seal_monitor.records, seal_monitor.events, seal_monitor.host_events TO seal_monitor_reader;
