import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { CodedError } from '../../../snapshotter/errors.ts'
import { Metastore } from '../../../snapshotter/snapshots/metastore.ts'

let dir = ''
let now = 0n
const clock = { now: () => ++now }
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'metastore-'))
})
afterEach(() => {
  rmSync(dir, { recursive: true })
})

function open(): Metastore {
  return new Metastore(join(dir, 'db'), { clock })
}

/** Adds the committed snapshot `name`. */
function commit(metastore: Metastore, name: string, parent?: string): void {
  active(metastore, `${name}-key`, parent)
  metastore.commit({
    key: `${name}-key`,
    name,
    parent: undefined,
    labels: new Map(),
    usage: { size: 7n, inodes: 1n },
  })
}

function active(metastore: Metastore, key: string, parent?: string): number {
  const id = metastore.reserveId()
  metastore.create({ id, kind: 'active', key, parent, labels: new Map() })
  return id
}

describe('metastore', () => {
  test('what was written is there after it is opened again', async () => {
    {
      await using metastore = open()
      commit(metastore, 'base')
      active(metastore, 'top', 'base')
    }
    await using metastore = open()
    expect(metastore.get('base')).toMatchObject({
      kind: 'committed',
      parent: undefined,
      usage: { size: 7n, inodes: 1n },
    })
    expect(metastore.get('top')).toMatchObject({ kind: 'active', parent: 'base' })
  })

  test('an ID is never given twice, not even after its snapshot was removed and the store reopened', async () => {
    let last = 0
    {
      await using metastore = open()
      last = active(metastore, 'a')
      metastore.remove('a')
    }
    await using metastore = open()
    expect(metastore.reserveId()).toBeGreaterThan(last)
  })

  test('a second process is refused while it is open', async () => {
    await using _metastore = open()
    expect(() => open()).toThrow(expect.objectContaining({ code: 'UNAVAILABLE' }))
    expect(() => open()).toThrow(/in use by another agent/)
  })

  test('a store of a newer agent is refused, and untouched', async () => {
    {
      await using _metastore = open()
    }
    const path = join(dir, 'db')
    const newer = new DatabaseSync(path)
    newer.exec('PRAGMA user_version = 99')
    newer.close()
    expect(() => open()).toThrow(/schema version 99, this agent knows 1/)
  })

  test('names are any text, but not empty and not longer than 32 KiB', async () => {
    await using metastore = open()
    for (const name of ['/a/b c', 'ü "quoted" \'\\', 'nul\0inside', 'x'.repeat(32_768)]) {
      active(metastore, name)
      expect(metastore.get(name).name).toBe(name)
    }
    for (const name of ['', 'x'.repeat(32_769)]) {
      expect(() => active(metastore, name)).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
      )
    }
  })

  test('a label has at most 4096 bytes with its key, and one without a value is not kept', async () => {
    await using metastore = open()
    const id = metastore.reserveId()
    const create = (labels: [string, string][]): void => {
      const snapshot = { id, kind: 'active' as const, key: 'a', parent: undefined }
      metastore.create({ ...snapshot, labels: new Map(labels) })
    }
    expect(() => create([['k', 'ü'.repeat(2_048)]])).toThrow(/4097 bytes/)
    create([
      ['k', `x${'ü'.repeat(2_047)}`],
      ['empty', ''],
      ['__proto__', 'kept'],
    ])
    expect([...metastore.get('a').labels.keys()]).toEqual(['k', '__proto__'])
  })

  test('a commit may give a parent to a snapshot that was prepared without one, and change no other', async () => {
    await using metastore = open()
    commit(metastore, 'base')
    active(metastore, 'other')
    active(metastore, 'alone')
    const usage = { size: 0n, inodes: 0n }
    const rebase = (key: string, parent: string): void => {
      metastore.commit({ key, name: `${key}-done`, parent, labels: new Map(), usage })
    }
    expect(() => rebase('alone', 'missing')).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }))
    expect(() => rebase('alone', 'other')).toThrow(
      expect.objectContaining({ code: 'FAILED_PRECONDITION' }),
    )
    rebase('alone', 'base')
    expect(metastore.get('alone-done').parent).toBe('base')

    active(metastore, 'child', 'base')
    expect(() => rebase('child', 'alone-done')).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    )
    rebase('child', 'base')
  })

  test('a failed call changes nothing', async () => {
    await using metastore = open()
    commit(metastore, 'base')
    active(metastore, 'a', 'base')
    const before = metastore.page(0, 100)
    const usage = { size: 0n, inodes: 0n }
    const labels = new Map<string, string>()
    for (const attempt of [
      () => active(metastore, 'a'),
      () => active(metastore, 'b', 'missing'),
      () => active(metastore, 'b', 'a'),
      () => metastore.commit({ key: 'a', name: 'base', parent: undefined, labels, usage }),
      () => metastore.commit({ key: 'base', name: 'x', parent: undefined, labels, usage }),
      () => metastore.commit({ key: 'none', name: 'x', parent: undefined, labels, usage }),
      () => metastore.remove('base'),
      () => metastore.remove('none'),
      () =>
        metastore.update({ name: 'a', labels: new Map([['x', 'y']]), paths: ['labels', 'kind'] }),
      () => metastore.update({ name: 'none', labels, paths: [] }),
    ]) {
      expect(attempt).toThrow(CodedError)
      expect(metastore.page(0, 100)).toEqual(before)
    }
  })
})
