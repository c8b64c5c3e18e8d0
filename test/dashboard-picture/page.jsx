import { createTheme, getDisplayProcessor, ThemeContext, toDataFrame } from '@grafana/data'
import { LegendDisplayMode, PanelChrome, TimeSeries, TooltipDisplayMode } from '@grafana/ui'
import { createRoot } from 'react-dom/client'

// The dashboard as a browser shows it: Grafana's own panels, where its JSON puts them, with what Prometheus answered.

const { dashboard, series, range, size, rowPx } = globalThis.picture

/** Of a dashboard: columns, and pixels between panels. */
const [COLUMNS, GAP_PX] = [24, 8]

const theme = createTheme({ colors: { mode: 'light' } })
const columnPx = size.width / COLUMNS
const timeRange = { from: toTime(range.startS), to: toTime(range.endS) }
timeRange.raw = { from: timeRange.from, to: timeRange.to }

function toTime(seconds) {
  const ms = seconds * 1000
  return { valueOf: () => ms }
}

/** One line of a panel, with what Grafana gives every time series that says nothing else. */
function frameOf({ name, values }, { defaults }, seriesIndex) {
  const custom = {
    drawStyle: 'line',
    lineWidth: 1,
    fillOpacity: 0,
    showPoints: 'never',
    axisPlacement: 'auto',
  }
  const color = { mode: 'palette-classic' }
  const frame = toDataFrame({
    fields: [
      { name: 'Time', type: 'time', values: values.map(([seconds]) => seconds * 1000) },
      {
        name: 'Value',
        type: 'number',
        values: values.map(([, value]) => (Number.isFinite(Number(value)) ? Number(value) : null)),
        config: { ...defaults, displayName: name, color, custom },
      },
    ],
  })
  for (const field of frame.fields) {
    field.state = { displayName: name, seriesIndex }
    field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' })
  }
  return frame
}

function framesOf({ fieldConfig }, lines) {
  return lines.map((line, at) => frameOf(line, fieldConfig, at))
}

function Panel({ panel, lines }) {
  const { x, y, w, h } = panel.gridPos
  const box = { width: w * columnPx - GAP_PX, height: h * rowPx - GAP_PX }
  const place = { position: 'absolute', left: x * columnPx, top: y * rowPx }
  return (
    <div style={place}>
      <PanelChrome title={panel.title} width={box.width} height={box.height}>
        {(width, height) =>
          lines.length === 0 ? (
            <p style={{ padding: 16 }}>No data</p>
          ) : (
            <TimeSeries
              frames={framesOf(panel, lines)}
              width={width}
              height={height}
              timeRange={timeRange}
              timeZone="utc"
              legend={{
                displayMode: LegendDisplayMode.List,
                placement: 'bottom',
                showLegend: true,
                calcs: [],
              }}
              options={{ tooltip: { mode: TooltipDisplayMode.None } }}
            />
          )
        }
      </PanelChrome>
    </div>
  )
}

document.body.style.background = theme.colors.background.canvas
document.body.style.margin = '8px'
document.body.style.fontFamily = theme.typography.fontFamily
document.body.style.color = theme.colors.text.primary
createRoot(document.querySelector('main')).render(
  <ThemeContext.Provider value={theme}>
    <div style={{ position: 'relative', width: size.width, height: size.height, fontSize: 14 }}>
      {dashboard.panels.map((panel, at) => (
        <Panel key={panel.title} panel={panel} lines={series[at]} />
      ))}
    </div>
  </ThemeContext.Provider>,
)
