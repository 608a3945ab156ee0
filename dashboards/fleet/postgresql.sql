-- The events of a small fleet in PostgreSQL, 15 or later: psql -v ON_ERROR_STOP=1 -1 -f postgresql.sql DATABASE
-- docs/fleet.md has the way from a host to here. May be run again; nothing is dropped. The columns are those
-- of clickhouse.sql, which says what they hold.

CREATE SCHEMA IF NOT EXISTS seal_monitor;

CREATE TABLE IF NOT EXISTS seal_monitor.records
(
    time timestamptz NOT NULL,
    id text NOT NULL,
    host_id text NOT NULL,
    host text NOT NULL,
    kind text NOT NULL,
    what text NOT NULL,
    severity text NOT NULL,
    rank smallint NOT NULL,
    fingerprint text NOT NULL,
    events smallint NOT NULL,
    suppressed bigint NOT NULL,
    verdict text NOT NULL,
    likely text NOT NULL,
    disposition text NOT NULL,
    workload text NOT NULL,
    user_slice text NOT NULL,
    executable text NOT NULL,
    files text NOT NULL,
    uid bigint NOT NULL,
    user_name text NOT NULL,
    pid bigint NOT NULL,
    build_ids text[] NOT NULL,
    summary text NOT NULL,
    event text COMPRESSION lz4 NOT NULL,
    arrived timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host_id, id)
);
CREATE INDEX IF NOT EXISTS records_by_fingerprint ON seal_monitor.records (fingerprint, time)
    INCLUDE (host_id, host, kind, what, rank, events, suppressed);
CREATE INDEX IF NOT EXISTS records_by_host ON seal_monitor.records (host, time);
CREATE INDEX IF NOT EXISTS records_by_user ON seal_monitor.records (user_name, time) WHERE user_name <> '';
CREATE INDEX IF NOT EXISTS records_by_build_id ON seal_monitor.records USING gin (build_ids);
-- Rows arrive by time, so their blocks are sorted by it: an index of a few kilobytes is enough.
CREATE INDEX IF NOT EXISTS records_by_time ON seal_monitor.records USING brin (time);

CREATE OR REPLACE VIEW seal_monitor.events AS SELECT *, host_id AS host_key FROM seal_monitor.records;
CREATE OR REPLACE VIEW seal_monitor.host_events AS SELECT * FROM seal_monitor.records;

-- Two functions that ClickHouse has, so that a question is the same text for both.
CREATE OR REPLACE FUNCTION seal_monitor.has(list text[], element text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT element = ANY (list)';
CREATE OR REPLACE FUNCTION seal_monitor.match(words text, pattern text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT words ~ pattern';

-- Where collectors insert: lines of JSON, one in each row. Nothing stays here.
CREATE TABLE IF NOT EXISTS seal_monitor.inbox (line text NOT NULL);

-- No text may make this fail, or a collector would send its batch for ever: what is missing is empty, and
-- what is no event is kept as kind 'unreadable'. A time that is far from now is that of this day.
CREATE OR REPLACE FUNCTION seal_monitor.sort() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS
$$
DECLARE
    e jsonb;
    r seal_monitor.records;
    manager text;
    inner_name text;
BEGIN
    BEGIN
        e := NEW.line::jsonb;
        -- Cut to microseconds, which it would round to.
        r.time := CASE WHEN e->>'time' ~ '^\d{4}-\d\d-\d\dT'
            THEN regexp_replace(e->>'time', '(\.\d{6})\d+', '\1')::timestamptz END;
        r.id := left(e->>'id', 64);
        r.host := left(coalesce(e#>>'{host,name}', ''), 255);
        r.host_id := left(coalesce(nullif(e#>>'{host,id}', ''), r.host), 255);
        r.kind := left(CASE e->>'kind' WHEN 'suppression' THEN coalesce(e->>'of', '') ELSE e->>'kind' END, 64);
        r.what := left(coalesce(nullif(e->>'operation', ''), nullif(e->>'cause', ''), nullif(e->>'method', ''),
            CASE r.kind WHEN 'health' THEN coalesce(e->>'event', '') WHEN 'seal' THEN 'seal' ELSE 'unknown' END), 64);
        r.severity := left(coalesce(e->>'severity', ''), 64);
        r.fingerprint := left(coalesce(e->>'fingerprint', ''), 64);
        r.events := CASE e->>'kind' WHEN 'suppression' THEN 0 ELSE 1 END;
        r.suppressed := CASE WHEN r.events = 0 AND jsonb_typeof(e->'count') = 'number'
            THEN greatest(least((e->>'count')::numeric, 1000000000000), 0)::bigint ELSE 0 END;
        r.verdict := left(coalesce(e->>'verdict', ''), 64);
        r.likely := left(coalesce(e#>>'{assessment,likely}', ''), 64);
        r.disposition := left(coalesce(e->>'disposition', ''), 64);
        manager := coalesce(substring(e#>>'{workload,cgroup}' FROM '/(user@[0-9]+\.service)(?:/|$)'), '');
        inner_name := CASE
            WHEN coalesce(e#>>'{workload,unit}', '') NOT IN ('', manager) THEN e#>>'{workload,unit}'
            WHEN e#>>'{workload,pod_uid}' <> '' THEN 'pod/' || (e#>>'{workload,pod_uid}')
            WHEN e#>>'{workload,container_id}' <> '' THEN 'container/' || left(e#>>'{workload,container_id}', 12)
            ELSE '' END;
        r.workload := CASE
            WHEN inner_name = '' AND manager <> '' THEN manager
            WHEN inner_name = '' THEN coalesce(e#>>'{workload,cgroup}', '')
            WHEN manager <> '' THEN manager || '/' || inner_name
            ELSE inner_name END;
        -- Longer names are cut as on the host, so that those of alerts are found.
        IF length(r.workload) > 200 THEN
            r.workload := '…' || right(r.workload, 199);
        END IF;
        r.user_slice := coalesce(nullif(
            left(substring(e#>>'{workload,cgroup}' FROM '^/user\.slice/(user-[0-9]+\.slice)(?:/|$)'), 255),
            r.workload), '');
        r.executable := left(coalesce(e#>>'{process,executable}', ''), 4096);
        r.files := left(coalesce(e#>>'{process,files}', CASE WHEN e->'process' ? 'files' THEN 'unknown' END, ''), 64);
        r.uid := CASE WHEN jsonb_typeof(e#>'{process,uid}') = 'number' THEN (e#>>'{process,uid}')::bigint ELSE -1 END;
        r.user_name := left(coalesce(e#>>'{process,user_name}', ''), 255);
        r.pid := CASE WHEN jsonb_typeof(e#>'{process,pid}') = 'number' THEN (e#>>'{process,pid}')::bigint ELSE 0 END;
        r.build_ids := ARRAY(SELECT DISTINCT left(b, 128) COLLATE "C" FROM (
            SELECT e#>>'{process,executable_build_id}' AS b UNION ALL
            SELECT frame->>'build_id' FROM jsonb_path_query(e, 'lax $.stack[0 to 63]') AS frame) AS frames
            WHERE b <> '' ORDER BY 1);
        r.summary := left(coalesce(e->>'summary', ''), 4096);
    EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
        r := NULL;
    END;
    IF coalesce(r.id, '') = '' OR coalesce(e->>'kind', '') = '' OR coalesce(e->>'time', '') = '' THEN
        r := NULL;
        r.id := 'unreadable-' || md5(NEW.line);
        r.host := ''; r.host_id := ''; r.kind := 'unreadable'; r.what := 'unknown'; r.severity := 'warning';
        r.events := 1; r.suppressed := 0; r.verdict := ''; r.likely := ''; r.disposition := ''; r.workload := '';
        r.user_slice := ''; r.executable := ''; r.files := ''; r.uid := -1; r.user_name := ''; r.pid := 0; r.build_ids := '{}';
        r.summary := 'not an event of seal-monitor'; r.fingerprint := '';
    END IF;
    IF r.time IS NULL OR r.time NOT BETWEEN now() - interval '400 days' AND now() + interval '2 days' THEN
        r.time := current_date;
    END IF;
    r.rank := CASE r.severity WHEN 'info' THEN 0 WHEN 'warning' THEN 1 ELSE 2 END;
    IF r.fingerprint = '' THEN  -- a suppression names no place, and a monitor before schema 2 no fingerprint
        r.fingerprint := left(encode(sha256(convert_to('["' || r.kind || '","' || r.what
            || '","unknown","unknown","unknown"]', 'UTF8')), 'hex'), 12);
    END IF;
    r.event := NEW.line;
    r.arrived := now();
    INSERT INTO seal_monitor.records SELECT r.* ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER sorting BEFORE INSERT ON seal_monitor.inbox
    FOR EACH ROW EXECUTE FUNCTION seal_monitor.sort();

-- Retention: run it each night, as by cron: SELECT seal_monitor.expire(400). Returns how many are gone.
CREATE OR REPLACE FUNCTION seal_monitor.expire(days integer) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS
$$
DECLARE
    gone bigint;
BEGIN
    DELETE FROM seal_monitor.records WHERE time < now() - make_interval(days => days);
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;
REVOKE ALL ON FUNCTION seal_monitor.expire(integer), seal_monitor.sort() FROM PUBLIC;
