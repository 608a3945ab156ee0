import type * as grafana from '@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import type * as stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import type * as table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
import type * as text from '@grafana/schema/dist/types/raw/composable/text/panelcfg/x/types.gen';
import type * as timeSeries from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';

interface Query {
  refId: string;
  datasource: grafana.DataSourceRef;
  editorMode: 'code' | 'builder';
  expr: string;
  legendFormat: string;
  instant: boolean;
  range: boolean;
  format: 'time_series' | 'table' | 'heatmap';
}

interface Panel<Type extends string, Options, Custom> extends Omit<
  grafana.Panel,
  'type' | 'options' | 'fieldConfig' | 'targets'
> {
  type: Type;
  options: Options;
  targets: Query[];
  fieldConfig: {
    defaults: Omit<grafana.FieldConfig, 'custom'> & { custom?: Custom };
    overrides: grafana.FieldConfigSource['overrides'];
  };
}

interface Annotation extends Omit<grafana.AnnotationQuery, 'target'> {
  target: { refId: string; expr: string };
  titleFormat: string;
  textFormat: string;
  tagKeys: string;
}

export interface Dashboard extends Omit<grafana.Dashboard, 'id' | 'panels' | 'annotations'> {
  id: null;
  annotations: { list: Annotation[] };
  panels: Array<
    | grafana.RowPanel
    | Panel<'stat', Omit<stat.Options, never>, never>
    | Panel<'table', Partial<table.Options>, Partial<table.FieldConfig>>
    | Panel<'text', Omit<text.Options, never>, never>
    | Panel<'timeseries', Omit<timeSeries.Options, never>, Omit<timeSeries.FieldConfig, never>>
  >;
}
