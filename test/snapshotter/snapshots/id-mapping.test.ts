import { describe, expect, test } from 'vitest'
import { IdMapping } from '../../../snapshotter/snapshots/id-mapping.ts'
import { failureOf } from '../../support/failure-of.ts'

const UIDS = 'containerd.io/snapshot/uidmapping'
const GIDS = 'containerd.io/snapshot/gidmapping'

function mapping(uids: string, gids = uids): IdMapping | undefined {
  return IdMapping.of(
    new Map([
      [UIDS, uids],
      [GIDS, gids],
    ]),
  )
}

describe('a mapping of ids', () => {
  test('is none without labels', () => {
    expect(IdMapping.of(new Map([['other', '0:1:2']]))).toBeUndefined()
  })

  test('is told to the kernel in its words, and shifts owners range by range', () => {
    const ids = mapping('0:100000:1000,1000:500000:10', '0:200000:65536')
    expect(ids?.uidMap).toBe('0 100000 1000\n1000 500000 10\n')
    expect(ids?.gidMap).toBe('0 200000 65536\n')
    expect(ids?.toHost({ uid: 0, gid: 5 })).toEqual({ uid: 100_000, gid: 200_005 })
    expect(ids?.toHost({ uid: 1009, gid: 0 })).toEqual({ uid: 500_009, gid: 200_000 })
  })

  test('has no owner on the node for an id outside of it', async () => {
    const failure = await failureOf(() => mapping('0:100000:10')?.toHost({ uid: 10, gid: 0 }))
    expect(failure).toMatchObject({ code: 'INVALID_ARGUMENT', message: /id 10/ })
  })

  test.each([
    '',
    '0:1',
    '0:1:0',
    'a:b:c',
    '0:1:2:3',
    '-1:0:1',
    '0:0:4294967296',
    '4294967295:0:1',
    '0:4294967295:1',
    '0:1:2,',
    `${'0:1:2,'.repeat(340)}0:1:2`,
  ])('is refused where it is %j', async (text) => {
    const failure = await failureOf(() => mapping(text, '0:1:1'))
    expect(failure).toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(failure.message).toContain(UIDS)
  })

  test('is refused where only half of it is there', async () => {
    const failure = await failureOf(() => IdMapping.of(new Map([[UIDS, '0:1:1']])))
    expect(failure).toMatchObject({ code: 'INVALID_ARGUMENT', message: /both/ })
  })
})
