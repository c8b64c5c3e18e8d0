import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { expect, test } from 'vitest'
import { Snapshots } from '../../../snapshotter/snapshots/snapshots.ts'
import { noLazyLayers } from '../../support/no-lazy-layers.ts'
import { seeded } from '../../support/seeded.ts'
import { type Model, modelOf, step } from './kill-script.ts'

const SEED = 11
const KILLS = 60

/** Changes to the disk before a process dies: its opening takes about five, a call three to eight. */
const EFFECTS = 60

/** Runs the script from step `from` in a process that kills itself at its n-th effect, and says which step was the last to begin. */
function runUntilKilled(
  root: string,
  { from, effects }: { from: number; effects: number },
): number {
  const script = join(import.meta.dirname, 'kill-child.ts')
  const args = [script, root, String(SEED), String(from), String(effects)]
  const { signal, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  expect({ signal, stderr }).toEqual({ signal: 'SIGKILL', stderr: '' })
  // None begun: it died while it opened the store, which must not change what is in it.
  return Number(stdout.trim().split('\n').at(-1) || from)
}

// Goal: whatever the moment of death, every call either happened whole or not at all, and no directory is left over
// or missing. Method: a random script runs in a child that dies over and over, each time just before another change to
// the disk; a model, which is a Map, runs along. The call under way when it died may or may not have happened, all
// before it must have.
test('a process killed in the middle of a call leaves the call done or not begun', async () => {
  const root = mkdtempSync(join(tmpdir(), 'kill-'))
  const { signal } = new AbortController()
  const random = seeded(SEED)
  let model: Model = new Map()
  let next = 0
  const outcomes = { done: 0, notBegun: 0 }
  try {
    for (let kill = 0; kill < KILLS; kill++) {
      const begun = runUntilKilled(root, { from: next, effects: 1 + random(EFFECTS) })
      for (; next < begun; next++) model = step(SEED, next).model(model)
      const { title, model: apply } = step(SEED, begun)
      const done = apply(model)

      const log = { warn: () => expect.unreachable('nothing is lost by a kill') }
      await using snapshots = await Snapshots.open({ root }, { layers: noLazyLayers, log })
      const found = modelOf(snapshots)
      const isDone = textOf(found) === textOf(done)
      const expected = textOf(isDone ? done : model)
      expect({ title, snapshots: textOf(found) }).toEqual({ title, snapshots: expected })
      if (done !== model) outcomes[isDone ? 'done' : 'notBegun'] += 1
      next = isDone ? begun + 1 : begun
      model = found

      await snapshots.cleanup()
      expect(readdirSync(join(root, 'snapshots')).length).toBe(
        [...model.values()].filter(({ kind, parent }) => kind !== 'view' || parent === '').length,
      )
      for (const [name, { kind }] of model) {
        if (kind === 'committed') continue
        const paths = (await snapshots.mounts(name, signal)).flatMap(pathsOf)
        expect(paths.filter((path) => !existsSync(path))).toEqual([])
      }
    }
    const db = new DatabaseSync(join(root, 'snapshots.db'))
    expect(db.prepare('PRAGMA integrity_check').get()).toEqual({ integrity_check: 'ok' })
    expect(db.prepare('PRAGMA foreign_key_check').all()).toEqual([])
    db.close()
    // Deaths on both sides of a commit, or the test would show nothing.
    expect(outcomes.done).toBeGreaterThan(0)
    expect(outcomes.notBegun).toBeGreaterThan(0)
  } finally {
    rmSync(root, { recursive: true })
  }
}, 60_000)

function textOf(model: Model): string {
  const lines = [...model].map(([name, snapshot]) => `${name} ${JSON.stringify(snapshot)}`)
  return lines.toSorted().join('\n')
}

/** Every directory that a mount names. */
function pathsOf(mount: { type: string; source: string; options: readonly string[] }): string[] {
  if (mount.type === 'bind') return [mount.source]
  return mount.options.flatMap((option) => {
    const [, paths] = /^(?:lowerdir|upperdir|workdir)=(.*)$/.exec(option) ?? []
    return paths === undefined ? [] : paths.split(':')
  })
}
