import { expect, test } from 'vitest'
import { type DrawnRow, drawPicture } from './picture.ts'

function row(place: string, readyMs: number, limitMs = 0): DrawnRow {
  const [workload = '', link = '', arm = ''] = place.split('/')
  return { workload, link, arm, title: `the arm ${arm}`, readyMs, limitMs }
}

function picture(...rows: DrawnRow[]): string {
  return drawPicture({ rounds: 3, rows })
}

/** Bars of the cells, not of the legend: colour, place and length. */
function bars(svg: string): { x: number; y: number; width: number; fill: string }[] {
  return [...svg.matchAll(/<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)".* fill="(.*?)"/g)]
    .map(([, x, y, width, fill = '']) => ({
      x: Number(x),
      y: Number(y),
      width: Number(width),
      fill,
    }))
    .filter(({ width }) => width !== 14)
}

test('bars of a cell are as long as their times, each with its time beside it', () => {
  const svg = picture(row('python/100m/overlayfs', 60_000), row('python/100m/ipdr', 1500))
  const [whole, lazy] = bars(svg)
  expect((lazy?.width ?? 0) / (whole?.width ?? 1)).toBeCloseTo(1.5 / 60, 2)
  expect(svg).toContain('>60.0</text>')
  expect(svg).toContain('>1.50</text>')
})

test('links are columns, workloads are rows, and an arm has one colour and one place in all cells', () => {
  const svg = picture(
    row('python/1g/overlayfs', 10),
    row('python/1g/ipdr', 10),
    row('python/20m/ipdr', 10),
    row('node/20m/ipdr', 10),
  )
  const [, near, far, below] = bars(svg)
  expect(new Set([near?.fill, far?.fill, below?.fill]).size).toBe(1)
  expect(near?.y).toBe(far?.y)
  expect(far?.x).toBeGreaterThan(near?.x ?? 0)
  expect(below?.x).toBe(far?.x)
  expect(below?.y).toBeGreaterThan(far?.y ?? 0)
  for (const words of ['1 Gbit/s, 1 ms', '20 Mbit/s, 80 ms', 'python', 'node', 'the arm ipdr']) {
    expect(svg).toContain(`>${words}</text>`)
  }
})

test('the physical limit is a line across its bar', () => {
  const svg = picture(row('python/100m/ipdr', 2000, 500))
  const [bar] = bars(svg)
  const [, x] = /class="limit" x1="([\d.]+)"/.exec(svg) ?? []
  expect((Number(x) - (bar?.x ?? 0)) / (bar?.width ?? 1)).toBeCloseTo(0.25, 2)
})

test('it has other colours of text on a dark page, and no name breaks it', () => {
  const svg = picture({ ...row('python/100m/odd', 10), title: 'a <b> & "c"' })
  expect(svg).toContain('@media (prefers-color-scheme: dark)')
  expect(svg).toContain('a &lt;b&gt; &amp; &quot;c&quot;')
})
