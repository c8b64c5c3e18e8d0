import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { expect, test } from 'vitest'
import { cpuSeconds, cpuTicks, highWaterBytes, peakMemoryBytes } from './process-cost.ts'

test('the time of a process is its own and that of children that it waited for, whatever it is called', () => {
  const stat = '7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 11 22 33 44 20 0 1 0 5'
  expect(cpuTicks(stat)).toBe(110)
  expect(cpuTicks('')).toBe(0)
})

test('the most memory of a process is read from its status, and none has none', () => {
  expect(highWaterBytes('Name:\tcat\nVmHWM:\t    1536 kB\nVmRSS:\t 900 kB\n')).toBe(1536 * 1024)
  expect(highWaterBytes('Name:\tkthreadd\n')).toBe(0)
})

test('a process that works and holds memory is seen to, and one that is gone counts nothing', async () => {
  const work = `const held = Buffer.alloc(64 << 20, 1)
    while (process.cpuUsage().user < 200_000);
    console.log(held.length)
    setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['-e', work], { stdio: ['ignore', 'pipe', 'inherit'] })
  const pid = child.pid as number
  await once(child.stdout, 'data')
  expect(cpuSeconds([pid])).toBeGreaterThanOrEqual(0.2)
  expect(peakMemoryBytes([pid])).toBeGreaterThan(64 << 20)
  const exited = once(child, 'exit')
  child.kill('SIGKILL')
  await exited
  expect([cpuSeconds([pid]), peakMemoryBytes([pid])]).toEqual([0, 0])
})
