// Prometheus as a data source: what Grafana's plug-in does, which is not on npm, as far as it is needed here.

import {
  type DataFrame,
  type DataQueryRequest,
  type DataQueryResponse,
  type Field,
  FieldType,
  type MetricFindValue,
  type ScopedVars,
  toDataFrame,
} from '@grafana/data';
import { RuntimeDataSource, sceneGraph, type SceneObject } from '@grafana/scenes';

interface Query {
  refId: string;
  expr: string;
  legendFormat: string;
  instant: boolean;
  format: string;
}

interface Series {
  metric: Record<string, string>;
  value?: [number, string];
  values?: Array<[number, string]>;
}

const SCRAPE_SECONDS = 60;

/** All of a variable's values as one regular expression. */
function asRegularExpression(value: unknown): string {
  return Array.isArray(value) ? `(${value.join('|')})` : String(value);
}

function legend(query: Query, labels: Record<string, string>): string {
  if (query.legendFormat === '__auto') {
    return Object.values(labels).join(' ') || 'Value';
  }
  return query.legendFormat.replace(/{{\s*(\w+)\s*}}/g, (_, label) => labels[label] ?? '');
}

function asSeries(query: Query, series: Series, start: number, end: number, step: number): DataFrame {
  const name = legend(query, series.metric);
  const given = new Map((series.values ?? [series.value!]).map(([at, value]) => [at, Number(value)]));
  const times: number[] = [];
  if (query.instant) {
    times.push(...given.keys());
  } else {
    // A step without a sample is a gap.
    for (let at = start; at <= end; at += step) {
      times.push(at);
    }
  }
  return toDataFrame({
    refId: query.refId,
    name,
    fields: [
      { name: 'Time', type: FieldType.time, values: times.map((at) => at * 1000) },
      {
        name: 'Value',
        type: FieldType.number,
        values: times.map((at) => given.get(at) ?? null),
        labels: series.metric,
        config: { displayNameFromDS: name },
      },
    ],
  });
}

/** Of several queries' values, each has the query's letter in its name. */
function asTable(query: Query, found: Series[], valueName: string): DataFrame {
  const labels = [...new Set(found.flatMap((series) => Object.keys(series.metric)))].sort();
  const fields: Array<Partial<Field>> = [
    { name: 'Time', type: FieldType.time, values: found.map((series) => series.value![0] * 1000), config: {} },
    ...labels.map((label) => ({
      name: label,
      type: FieldType.string,
      values: found.map((series) => series.metric[label] ?? ''),
      config: {},
    })),
    { name: valueName, type: FieldType.number, values: found.map((series) => Number(series.value![1])), config: {} },
  ];
  return toDataFrame({ refId: query.refId, fields });
}

export class PrometheusSource extends RuntimeDataSource<any> {
  constructor(
    uid: string,
    private readonly prometheus: string
  ) {
    super('prometheus', uid);
  }

  private async get(path: string, parameters: Record<string, string | number>): Promise<any> {
    const text = new URLSearchParams(Object.entries(parameters).map(([key, value]) => [key, String(value)]));
    const answer = await fetch(`${this.prometheus}/api/v1/${path}?${text}`);
    const body = await answer.json();
    if (body.status !== 'success') {
      throw new Error(body.error);
    }
    return body.data;
  }

  private interpolate(text: string, variables: ScopedVars): string {
    const scene = (variables.__sceneObject?.value as { valueOf(): SceneObject }).valueOf();
    return sceneGraph.interpolate(scene, text, variables, asRegularExpression);
  }

  async query(request: DataQueryRequest<any>): Promise<DataQueryResponse> {
    const range = Math.round((request.range.to.valueOf() - request.range.from.valueOf()) / 1000);
    const step = Math.max(SCRAPE_SECONDS, Math.ceil(request.intervalMs / 1000));
    const now = Math.floor(request.range.to.valueOf() / 1000);
    const end = Math.floor(now / step) * step; // a bar ends where the next one begins
    const start = Math.floor((now - range) / step) * step;
    const window = Math.max(step + SCRAPE_SECONDS, 4 * SCRAPE_SECONDS);
    const seconds = { __rate_interval: window, __range: range, __interval: step };
    const variables: ScopedVars = {
      ...request.scopedVars,
      ...Object.fromEntries(
        Object.entries(seconds).map(([name, value]) => [name, { value: `${value}s`, text: `${value}s` }])
      ),
      __range_s: { value: range, text: String(range) },
      __interval_ms: { value: step * 1000, text: String(step * 1000) },
    };
    const frames: DataFrame[] = [];
    for (const query of request.targets as Query[]) {
      const expression = this.interpolate(query.expr, variables);
      const data = query.instant
        ? await this.get('query', { query: expression, time: now })
        : await this.get('query_range', { query: expression, start, end, step });
      const found: Series[] = data.result;
      if (query.format === 'table') {
        frames.push(asTable(query, found, request.targets.length > 1 ? `Value #${query.refId}` : 'Value'));
      } else {
        frames.push(...found.map((series) => asSeries(query, series, start, end, step)));
      }
    }
    return { data: frames };
  }

  async metricFindQuery(query: any, options?: any): Promise<MetricFindValue[]> {
    const text = this.interpolate(typeof query === 'string' ? query : query.query, options.scopedVars);
    const [, metric, label] = /^label_values\((.+), (\w+)\)$/.exec(text)!;
    const range = options.range;
    const values: string[] = await this.get(`label/${label}/values`, {
      'match[]': metric,
      start: range.from.valueOf() / 1000,
      end: range.to.valueOf() / 1000,
    });
    return values.map((value) => ({ text: value }));
  }
}
