import { expect, test } from 'vitest'
import { formatBytes, formatMs, formatRate, parseSize } from '../../../agent/cli/quantity.ts'

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1.0 KiB'],
  [1536, '1.5 KiB'],
  [312 * 1024 ** 2, '312 MiB'],
  [1024 ** 6, '1024 PiB'],
])('%d bytes are %s', (bytes, text) => expect(formatBytes(bytes)).toBe(text))

test.each([
  [0.42, '0.4 ms'],
  [850, '850 ms'],
  [3210, '3.2 s'],
  [125_000, '2 min 5 s'],
  [11_040_000, '3 h 4 min'],
  [200_000_000, '2 d 7 h'],
])('%d ms are %s', (ms, text) => expect(formatMs(ms)).toBe(text))

test('a rate is in powers of 1000, and 0 where no time passed', () => {
  expect(formatRate(70_400_000, 2000)).toBe('35.2 MB/s')
  expect(formatRate(1, 0)).toBe('0.0 MB/s')
})

test.each([
  ['1048576', 1_048_576],
  ['64MiB', 64 * 1024 ** 2],
  ['10GiB', 10 * 1024 ** 3],
  ['1.5g', 1.5 * 1024 ** 3],
  ['500MB', 500_000_000],
  ['0', 0],
  ['12 B', 12],
])('%s is %d bytes', (text, bytes) => expect(parseSize(text)).toBe(bytes))

test.each(['', 'ten', '-1', '1e3', '10x', '9999999TiB', '1.5.2G'])('%s is no size', (text) => {
  expect(() => parseSize(text)).toThrow('is not a size')
})
