import { PassThrough } from 'node:stream'
import { expect, test } from 'vitest'
import { Steps } from './steps.ts'

const CLEAR_LINE = '\r\u001b[K'

/** Keeps what is written to it, as a terminal of this many columns or as a file. */
function streamTo(written: string[], columns?: number): NodeJS.WriteStream {
  const stream = new PassThrough().setEncoding('utf8').on('data', (text) => written.push(text))
  return Object.assign(stream, { isTTY: columns !== undefined, columns }) as never
}

test('elsewhere than on a terminal a step is a line when it begins and one with its outcome', async () => {
  const written: string[] = []
  const steps = new Steps(streamTo(written), ['Bake', 'Eat it'])
  expect(
    await steps.run(
      'Eat it',
      async () => 7,
      (slices) => `${slices} slices`,
    ),
  ).toBe(7)
  const [begun, ended] = written.join('').split('\n')
  expect(begun).toBe('[2/2] Eat it …')
  expect(ended).toMatch(/^\[2\/2\] Eat it +\d.*s {2}7 slices$/)
})

test('on a terminal a step is drawn over again and again, and never wraps', async () => {
  const written: string[] = []
  const stream = streamTo(written, 20)
  const { promise: drawn, resolve } = Promise.withResolvers<void>()
  stream.on('data', () => resolve())
  await new Steps(stream, ['Bake']).run(
    'Bake',
    async (say) => {
      say('a detail of many words')
      await drawn
    },
    () => 'done',
  )
  const [first = '', last = ''] = [written[0], written.at(-1)]
  expect(first.startsWith(`${CLEAR_LINE}[1/1] Bake`)).toBe(true)
  expect(first.slice(CLEAR_LINE.length)).toHaveLength(19)
  expect(last.startsWith(CLEAR_LINE)).toBe(true)
  expect(last).toMatch(/done\n$/)
})

test('a step that fails is closed as not done, and fails', async () => {
  const written: string[] = []
  const burn = new Steps(streamTo(written), ['Bake']).run(
    'Bake',
    async () => await Promise.reject(new Error('too hot')),
    () => 'done',
  )
  await expect(burn).rejects.toThrow('too hot')
  expect(written.join('')).toMatch(/did not get done\n$/)
})
