import { expect, test } from 'vitest'
import { LINKS, physicalLimitMs } from './link-profile.ts'

test('the physical limit is the time that the bytes take and three round trips', () => {
  const [near, city, far] = LINKS
  if (near === undefined || city === undefined || far === undefined) throw new Error('three links')
  expect(physicalLimitMs(0, near)).toBe(3)
  expect(physicalLimitMs(12.5e6, city)).toBeCloseTo(1060)
  expect(physicalLimitMs(30e6, far)).toBeCloseTo(12_240)
})
