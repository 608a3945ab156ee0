// ClickHouse or PostgreSQL as a data source: what Grafana's plug-ins do, as far as it is needed here.

import {
  type DataFrame,
  type DataQueryRequest,
  type DataQueryResponse,
  FieldType,
  type ScopedVars,
  toDataFrame,
} from '@grafana/data';
import { RuntimeDataSource, sceneGraph, type SceneObject } from '@grafana/scenes';

interface Query {
  refId: string;
  rawSql: string;
}

function typeOf(name: string): FieldType {
  if (/^DateTime/.test(name)) {
    return FieldType.time;
  }
  return /^(U?Int|Float)/.test(name) ? FieldType.number : FieldType.string;
}

function value(type: FieldType, given: any): any {
  if (type === FieldType.time) {
    return Date.parse(`${given.slice(0, 23).replace(' ', 'T')}Z`);
  }
  return type === FieldType.number ? Number(given) : given;
}

export class SqlSource extends RuntimeDataSource<any> {
  constructor(
    uid: string,
    private readonly server: string,
    private readonly format: string
  ) {
    super('sql', uid);
  }

  private async rows(query: Query, variables: ScopedVars): Promise<DataFrame> {
    const scene = (variables.__sceneObject?.value as { valueOf(): SceneObject }).valueOf();
    const sql = sceneGraph.interpolate(scene, query.rawSql, variables);
    const answer = await fetch(this.server, { method: 'POST', body: sql + this.format });
    const text = await answer.text();
    if (!answer.ok) {
      throw new Error(text);
    }
    const [names, types, ...rows] = text.trim().split('\n').map((line) => JSON.parse(line));
    const fields = names.map((name: string, index: number) => {
      const type = typeOf(types[index]);
      return { name, type, values: rows.map((row: any[]) => value(type, row[index])), config: {} };
    });
    return toDataFrame({ refId: query.refId, fields });
  }

  async query(request: DataQueryRequest<any>): Promise<DataQueryResponse> {
    const asked = (request.targets as Query[]).map((query) => this.rows(query, request.scopedVars));
    return { data: await Promise.all(asked) };
  }
}
