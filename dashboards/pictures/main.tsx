// Draws dashboards/NAME.json with @grafana/scenes: ?dashboard=NAME&prometheus=URL&from=MS&to=MS[&theme=dark][&var-VARIABLE=VALUE]
// With clickhouse=URL or postgresql=URL in place of prometheus=URL the data are those of that database.

import {
  createTheme,
  EventBusSrv,
  LoadingState,
  standardEditorsRegistry,
  standardFieldConfigEditorRegistry,
  standardTransformers,
  standardTransformersRegistry,
} from '@grafana/data';
import { ThemeContext } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { config, setAppEvents, setPluginImportUtils, setRunRequest } from '@grafana/runtime';
import {
  CustomVariable,
  EmbeddedScene,
  QueryVariable,
  SceneControlsSpacer,
  SceneDataTransformer,
  SceneGridItem,
  SceneGridLayout,
  SceneGridRow,
  SceneQueryRunner,
  SceneTimeRange,
  SceneTimePicker,
  sceneUtils,
  SceneVariableSet,
  TextBoxVariable,
  VariableValueSelectors,
  VizPanel,
} from '@grafana/scenes';
import { GlobalStyles, PortalContainer } from '@grafana/ui';
import { createRoot } from 'react-dom/client';
import { BrowserRouter } from 'react-router-dom';
import { from, map, catchError, of } from 'rxjs';

import { PANELS, STANDARD_FIELDS } from './panels';
import { PrometheusSource } from './prometheus';
import { SqlSource } from './sql';

const SOURCE = 'source';
const asked = new URLSearchParams(window.location.search);

/** What Grafana sets up at its start. */
async function prepare(): Promise<void> {
  await initPluginTranslations('grafana');
  config.theme2 = createTheme({ colors: { mode: asked.get('theme') === 'dark' ? 'dark' : 'light' } });
  setAppEvents(new EventBusSrv());
  standardFieldConfigEditorRegistry.setInit(() => STANDARD_FIELDS as any);
  standardEditorsRegistry.setInit(() => []);
  const transformers = new Map(Object.values(standardTransformers).map((each: any) => [each.id, each]));
  standardTransformersRegistry.setInit(() =>
    [...transformers].map(([id, transformation]) => ({ id, name: transformation.name, transformation: async () => transformation }) as any)
  );
  setPluginImportUtils({
    importPanelPlugin: async (id: string) => PANELS[id],
    getPanelPluginFromCache: (id: string) => PANELS[id],
  } as any);
  setRunRequest(((source: any, request: any) =>
    from(source.query(request) as Promise<any>).pipe(
      map(({ data }) => ({ state: LoadingState.Done, series: data, timeRange: request.range, request })),
      catchError((error) =>
        of({ state: LoadingState.Error, series: [], errors: [error], error, timeRange: request.range, request })
      )
    )) as any);
  sceneUtils.registerRuntimeDataSource({ dataSource: CHOSEN.make(asked.get(CHOSEN.parameter)!) });
}

const SOURCES = [
  {
    parameter: 'clickhouse',
    name: 'ClickHouse',
    type: 'sql',
    make: (url: string) => new SqlSource(SOURCE, url, '\nFORMAT JSONCompactEachRowWithNamesAndTypes'),
  },
  { parameter: 'postgresql', name: 'PostgreSQL', type: 'sql', make: (url: string) => new SqlSource(SOURCE, url, '') },
  { parameter: 'prometheus', name: 'Prometheus', type: 'prometheus', make: (url: string) => new PrometheusSource(SOURCE, url) },
];
const CHOSEN = SOURCES.find(({ parameter }) => asked.has(parameter))!;
const REFERENCE = { type: CHOSEN.type, uid: SOURCE };

function variable(model: any) {
  const common = { name: model.name, label: model.label };
  if (model.type === 'datasource') {
    return new CustomVariable({ ...common, query: CHOSEN.name, value: CHOSEN.name, text: CHOSEN.name });
  }
  const wanted = asked.get(`var-${model.name}`);
  if (model.type === 'textbox') {
    return new TextBoxVariable({ ...common, value: wanted ?? model.query });
  }
  const current = wanted ? { value: wanted, text: wanted } : { value: model.current.value, text: model.current.text };
  return new QueryVariable({
    ...common,
    ...current,
    datasource: REFERENCE,
    query: model.query,
    regex: model.regex,
    isMulti: model.multi,
    includeAll: model.includeAll,
    allValue: model.allValue,
    sort: model.sort,
    refresh: model.refresh,
  });
}

function item(panel: any) {
  const data = () =>
    new SceneDataTransformer({
      $data: new SceneQueryRunner({
        datasource: REFERENCE,
        queries: panel.targets,
        minInterval: panel.interval,
        maxDataPoints: panel.maxDataPoints,
      }),
      transformations: panel.transformations ?? [],
    });
  return new SceneGridItem({
    ...place(panel),
    body: new VizPanel({
      title: panel.title,
      description: panel.description,
      pluginId: panel.type,
      options: panel.options,
      fieldConfig: panel.fieldConfig,
      $data: panel.targets.length ? data() : undefined,
    }),
  });
}

const place = ({ gridPos }: any) => ({ x: gridPos.x, y: gridPos.y, width: gridPos.w, height: gridPos.h });

function grid(panels: any[]) {
  const rows: Array<{ row: any; items: any[] }> = [];
  for (const panel of panels) {
    if (panel.type === 'row') {
      rows.push({ row: panel, items: [] });
    } else {
      rows.at(-1)!.items.push(panel);
    }
  }
  return rows.map(
    ({ row, items }) => new SceneGridRow({ title: row.title, y: row.gridPos.y, children: items.map(item) })
  );
}

async function draw(): Promise<void> {
  await prepare();
  const dashboard = await (await fetch(`./dashboards/${asked.get('dashboard')}.json`)).json();
  const scene = new EmbeddedScene({
    $timeRange: new SceneTimeRange({
      from: new Date(Number(asked.get('from'))).toISOString(),
      to: new Date(Number(asked.get('to'))).toISOString(),
      timeZone: 'utc',
    }),
    $variables: new SceneVariableSet({ variables: dashboard.templating.list.map(variable) }),
    controls: [new VariableValueSelectors({}), new SceneControlsSpacer(), new SceneTimePicker({})],
    body: new SceneGridLayout({ isLazy: false, children: grid(dashboard.panels) }),
  });
  createRoot(document.getElementById('root')!).render(
    <ThemeContext.Provider value={config.theme2}>
      <GlobalStyles />
      <BrowserRouter>
        <div style={{ padding: 16 }}>
          <h3>{dashboard.title}</h3>
          <scene.Component model={scene} />
        </div>
        <PortalContainer />
      </BrowserRouter>
    </ThemeContext.Provider>
  );
}

void draw();
