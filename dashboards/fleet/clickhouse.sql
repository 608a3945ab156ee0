-- The events of all hosts in ClickHouse, 24.8 or later: clickhouse-client --queries-file clickhouse.sql
-- docs/fleet.md has the way from a host to here. May be run again; nothing is dropped.

CREATE DATABASE IF NOT EXISTS seal_monitor;

-- Where collectors insert: the columns of the OpenTelemetry collector's own table of logs. Nothing stays
-- here; the view below makes a row of seal_monitor.records of each log record.
CREATE TABLE IF NOT EXISTS seal_monitor.inbox
(
    Timestamp DateTime64(9),
    TimestampTime DateTime DEFAULT toDateTime(Timestamp),
    TraceId String,
    SpanId String,
    TraceFlags UInt8,
    SeverityText LowCardinality(String),
    SeverityNumber UInt8,
    ServiceName LowCardinality(String),
    Body String,
    ResourceSchemaUrl LowCardinality(String),
    ResourceAttributes Map(LowCardinality(String), String),
    ScopeSchemaUrl LowCardinality(String),
    ScopeName String,
    ScopeVersion LowCardinality(String),
    ScopeAttributes Map(LowCardinality(String), String),
    LogAttributes Map(LowCardinality(String), String),
    EventName String
)
ENGINE = Null;

-- A record that is sent twice has the same sorting key, and one row of it remains: the one that arrived
-- first, so that no later one can replace it. Until parts are merged both are there: ask
-- seal_monitor.events, below.
CREATE TABLE IF NOT EXISTS seal_monitor.records
(
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    id String CODEC(ZSTD(1)),
    host_id LowCardinality(String) CODEC(ZSTD(1)),
    host LowCardinality(String) CODEC(ZSTD(1)),
    kind LowCardinality(String) COMMENT 'denial, fault, bypass, seal, health; of a suppression that of what it counts; unreadable: no event',
    what LowCardinality(String) COMMENT 'operation, cause or method; the name of a health event',
    severity LowCardinality(String),
    rank UInt8 COMMENT 'of the severity: 0 info, 1 warning, 2 critical and any other',
    fingerprint LowCardinality(String) COMMENT 'id of the incident, the same on all hosts',
    events UInt8 COMMENT '1, or 0 for a suppression',
    suppressed UInt64 COMMENT 'how many a suppression counts',
    verdict LowCardinality(String),
    likely LowCardinality(String),
    disposition LowCardinality(String),
    workload LowCardinality(String),
    user_slice LowCardinality(String) COMMENT 'as user-1000.slice, which alerts name in place of what a user runs; else empty',
    executable LowCardinality(String),
    files LowCardinality(String) COMMENT 'whose path that is: host, namespace, unknown; empty: the event does not say',
    uid Int64 COMMENT '-1: not known',
    user_name LowCardinality(String),
    pid UInt32 CODEC(ZSTD(1)),
    build_ids Array(LowCardinality(String)) COMMENT 'of the executable and of the files in the stack, sorted',
    summary String CODEC(ZSTD(3)),
    event String CODEC(ZSTD(1)) COMMENT 'the event as it was sent',
    key UInt64 DEFAULT cityHash64(host_id, id) CODEC(NONE) COMMENT 'a quarter of the time of the id itself, where records are sorted out',
    arrived DateTime('UTC') DEFAULT now() CODEC(Delta, ZSTD(1)),
    precedence UInt32 DEFAULT toUInt32(4294967295 - toUInt32(now())) CODEC(Delta, ZSTD(1)),
    INDEX by_build_id build_ids TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = ReplacingMergeTree(precedence)
PARTITION BY toYYYYMM(time)
ORDER BY (fingerprint, time, key)
TTL toDateTime(time) + INTERVAL 400 DAY
SETTINGS index_granularity = 1024, ttl_only_drop_parts = 1;

-- No text may make this fail, or the collector would send its batch for ever: what is missing or of
-- another type is empty, and what is no event is kept as kind 'unreadable'. A time that is far from now
-- is that of this day, or a host could fill the disk with partitions that no retention reaches.
CREATE MATERIALIZED VIEW IF NOT EXISTS seal_monitor.sorting TO seal_monitor.records AS
WITH
    JSONExtract(Body, 'Tuple(
        id String, time String, kind String, of String, severity String, summary String, fingerprint String,
        operation String, cause String, method String, event String, verdict String, disposition String,
        count Nullable(UInt64),
        host Tuple(id String, name String),
        assessment Tuple(likely String),
        process Tuple(pid UInt32, executable String, files String, uid Nullable(Int64), user_name String,
            executable_build_id String),
        workload Tuple(unit String, container_id String, pod_uid String, cgroup String),
        stack Array(Tuple(build_id String)))') AS e,
    e.id != '' AND e.kind != '' AND e.time != '' AS readable,
    if(readable, parseDateTime64BestEffortOrNull(e.time, 9, 'UTC'), NULL) AS given,
    multiIf(NOT readable, 'unreadable', e.kind = 'suppression', e.of, e.kind) AS of_kind,
    multiIf(e.operation != '', e.operation, e.cause != '', e.cause, e.method != '', e.method,
        of_kind = 'health', e.event, of_kind = 'seal', 'seal', 'unknown') AS of_what,
    extract(e.workload.cgroup, '/(user@[0-9]+\\.service)(?:/|$)') AS manager,
    multiIf(e.workload.unit NOT IN ('', manager), e.workload.unit,
        e.workload.pod_uid != '', concat('pod/', e.workload.pod_uid),
        e.workload.container_id != '', concat('container/', left(e.workload.container_id, 12)), '') AS inner,
    multiIf(inner = '' AND manager != '', manager, inner = '', e.workload.cgroup,
        manager != '', concat(manager, '/', inner), inner) AS whole_workload,
    -- Longer names are cut as on the host, so that those of alerts are found.
    if(lengthUTF8(whole_workload) > 200, concat('…', rightUTF8(whole_workload, 199)), whole_workload) AS of_workload,
    extract(e.workload.cgroup, '^/user\\.slice/(user-[0-9]+\\.slice)(?:/|$)') AS of_user
SELECT
    if(given BETWEEN now() - INTERVAL 400 DAY AND now() + INTERVAL 2 DAY, assumeNotNull(given),
        toDateTime64(today(), 9, 'UTC')) AS time,
    left(if(readable, e.id, concat('unreadable-', lower(hex(MD5(Body))))), 64) AS id,
    leftUTF8(multiIf(e.host.id != '', e.host.id, ResourceAttributes['host.id'] != '', ResourceAttributes['host.id'],
        e.host.name), 255) AS host_id,
    leftUTF8(if(e.host.name != '', e.host.name, ResourceAttributes['host.name']), 255) AS host,
    leftUTF8(of_kind, 64) AS kind,
    leftUTF8(of_what, 64) AS what,
    leftUTF8(if(readable, e.severity, 'warning'), 64) AS severity,
    multiIf(severity = 'info', 0, severity = 'warning', 1, 2) AS rank,
    -- A suppression names no place, and a monitor before schema 2 no fingerprint: as fingerprint.py has it.
    if(e.fingerprint != '', leftUTF8(e.fingerprint, 64), left(lower(hex(SHA256(concat('["', kind, '","', what,
        '","unknown","unknown","unknown"]')))), 12)) AS fingerprint,
    if(e.kind = 'suppression', 0, 1) AS events,
    if(e.kind = 'suppression', least(coalesce(e.count, 0), 1000000000000), 0) AS suppressed,
    leftUTF8(e.verdict, 64) AS verdict,
    leftUTF8(e.assessment.likely, 64) AS likely,
    leftUTF8(e.disposition, 64) AS disposition,
    of_workload AS workload,
    if(of_user = workload, '', left(of_user, 255)) AS user_slice,
    leftUTF8(e.process.executable, 4096) AS executable,
    multiIf(e.process.files != '', left(e.process.files, 64), NOT JSONHas(Body, 'process', 'files'), '', 'unknown') AS files,
    coalesce(e.process.uid, -1) AS uid,
    leftUTF8(e.process.user_name, 255) AS user_name,
    e.process.pid AS pid,
    arraySort(arrayDistinct(arrayMap(b -> left(b, 128), arrayFilter(b -> b != '',
        arrayPushBack(arraySlice(e.stack.build_id, 1, 64), e.process.executable_build_id))))) AS build_ids,
    leftUTF8(if(readable, e.summary, 'not an event of seal-monitor'), 4096) AS summary,
    Body AS event
FROM seal_monitor.inbox;

-- Each event once. A host by its number is counted in half of the time that its id takes. (The cast: a table
-- may have no number of low cardinality, as the hash of one is.)
CREATE VIEW IF NOT EXISTS seal_monitor.events AS
SELECT *, CAST(cityHash64(host_id), 'UInt64') AS host_key
FROM seal_monitor.records FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;

-- What each host reported, sorted by host, with what a timeline shows. Ask seal_monitor.host_events. A table
-- and no projection: that would have no codecs, and its doubles would be left to every question.
CREATE TABLE IF NOT EXISTS seal_monitor.host_records
(
    host String CODEC(ZSTD(1)),
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    id String CODEC(ZSTD(1)),
    kind LowCardinality(String),
    severity LowCardinality(String),
    fingerprint LowCardinality(String) CODEC(ZSTD(1)),
    what LowCardinality(String),
    executable LowCardinality(String) CODEC(ZSTD(1)),
    workload LowCardinality(String) CODEC(ZSTD(1)),
    user_name LowCardinality(String),
    pid UInt32 CODEC(ZSTD(1)),
    summary String CODEC(ZSTD(3)),
    precedence UInt32 CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(precedence)
PARTITION BY toYYYYMM(time)
PRIMARY KEY (host, time)
ORDER BY (host, time, id)
TTL toDateTime(time) + INTERVAL 400 DAY
SETTINGS index_granularity = 256, ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS seal_monitor.sorting_by_host TO seal_monitor.host_records AS
SELECT host, time, id, kind, severity, fingerprint, what, executable, workload, user_name, pid, summary, precedence
FROM seal_monitor.records;

CREATE VIEW IF NOT EXISTS seal_monitor.host_events AS
SELECT * FROM seal_monitor.host_records FINAL SETTINGS do_not_merge_across_partitions_select_final = 1;
