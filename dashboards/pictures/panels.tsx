// Panel plug-ins are not on npm: the components of @grafana/ui, in the frame of one.

import {
  FieldConfigProperty,
  type FieldConfigPropertyItem,
  FieldColorModeId,
  type FieldDisplay,
  getFieldDisplayValues,
  identityOverrideProcessor,
  dataLinksOverrideProcessor,
  numberOverrideProcessor,
  PanelPlugin,
  type PanelProps,
  stringOverrideProcessor,
  thresholdsOverrideProcessor,
  ThresholdsMode,
  unitOverrideProcessor,
  valueMappingsOverrideProcessor,
  displayNameOverrideProcessor,
  renderTextPanelMarkdown,
} from '@grafana/data';
import { BigValue, Table, TimeSeries, useTheme2 } from '@grafana/ui';

const nothing = () => null;

function property(id: string, process: any, extra: object = {}): FieldConfigPropertyItem {
  return {
    id,
    path: id,
    name: id,
    editor: nothing as any,
    override: nothing as any,
    process,
    shouldApply: () => true,
    settings: {},
    ...extra,
  } as FieldConfigPropertyItem;
}

/** What every panel knows of a field. */
export const STANDARD_FIELDS = [
  property('unit', unitOverrideProcessor),
  property('min', numberOverrideProcessor),
  property('max', numberOverrideProcessor),
  property('decimals', numberOverrideProcessor),
  property('displayName', displayNameOverrideProcessor),
  property('noValue', stringOverrideProcessor),
  property('color', identityOverrideProcessor),
  property('thresholds', thresholdsOverrideProcessor, {
    defaultValue: { mode: ThresholdsMode.Absolute, steps: [{ color: 'green', value: -Infinity }] },
  }),
  property('mappings', valueMappingsOverrideProcessor, { defaultValue: [] }),
  property('links', dataLinksOverrideProcessor),
];

function Nothing({ fieldConfig }: PanelProps<any>) {
  return (
    <div data-empty style={{ textAlign: 'center', paddingTop: '2em', opacity: 0.6 }}>
      {fieldConfig.defaults.noValue}
    </div>
  );
}

function TimeSeriesPanel(props: PanelProps<any>) {
  if (!props.data.series.length) {
    return <Nothing {...props} />;
  }
  return (
    <TimeSeries
      frames={props.data.series}
      structureRev={props.data.structureRev}
      width={props.width}
      height={props.height}
      timeRange={props.timeRange}
      timeZone="utc"
      legend={props.options.legend}
    />
  );
}

function displays(props: PanelProps<any>, theme: any): FieldDisplay[] {
  return getFieldDisplayValues({
    fieldConfig: props.fieldConfig,
    reduceOptions: props.options.reduceOptions,
    replaceVariables: props.replaceVariables,
    theme,
    data: props.data.series,
    timeZone: 'utc',
  });
}

function StatPanel(props: PanelProps<any>) {
  const theme = useTheme2();
  const [first] = displays(props, theme);
  return (
    <BigValue
      value={first.display}
      width={props.width}
      height={props.height}
      theme={theme}
      {...props.options}
    />
  );
}

function TablePanel(props: PanelProps<any>) {
  const [frame] = props.data.series;
  if (!frame?.length) {
    return <Nothing {...props} />;
  }
  return (
    <Table
      data={frame}
      width={props.width}
      height={props.height}
      timeRange={props.timeRange}
      initialSortBy={props.options.sortBy}
      columnMinWidth={70}
    />
  );
}

function TextPanel({ options, replaceVariables }: PanelProps<any>) {
  return (
    <div
      className="markdown-html"
      dangerouslySetInnerHTML={{ __html: renderTextPanelMarkdown(replaceVariables(options.content)) }}
    />
  );
}

const custom = (...names: string[]) => (builder: any) => {
  for (const name of names) {
    builder.addCustomEditor({
      id: name,
      path: name,
      name,
      editor: nothing,
      override: nothing,
      process: identityOverrideProcessor,
      shouldApply: () => true,
    });
  }
};

function plugin(id: string, component: any, fields: any): PanelPlugin {
  const made = new PanelPlugin(component).useFieldConfig({
    standardOptions: { [FieldConfigProperty.Color]: { defaultValue: { mode: FieldColorModeId.Thresholds } } } as any,
    useCustomConfig: fields,
  });
  made.meta = { id, name: id, info: {} } as any;
  return made;
}

export const PANELS: Record<string, PanelPlugin> = {
  timeseries: plugin(
    'timeseries',
    TimeSeriesPanel,
    custom('drawStyle', 'fillOpacity', 'lineWidth', 'stacking', 'showPoints')
  ),
  stat: plugin('stat', StatPanel, custom()),
  table: plugin('table', TablePanel, custom('align', 'cellOptions', 'filterable', 'hidden', 'hideFrom', 'width', 'minWidth')),
  text: plugin('text', TextPanel, custom()),
};
