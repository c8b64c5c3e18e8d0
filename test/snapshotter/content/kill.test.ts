import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { ContentStore } from '../../../snapshotter/content-store.ts'
import { digestOf } from '../../../snapshotter/oci/digest.ts'
import { NOTHING_PUBLISHED } from '../../support/content-client.ts'
import { seeded } from '../../support/seeded.ts'
import { uploadOf } from './kill-script.ts'

const SEED = 23
const KILLS = 40

/** Changes to the disk before a process dies: opening takes about eight, an upload twelve to twenty. */
const EFFECTS = 70

test('a process killed in the middle of an upload has lost no blob that it acknowledged, and the upload goes on', async () => {
  const root = mkdtempSync(join(tmpdir(), 'content-kill-'))
  const random = seeded(SEED)
  const { signal } = new AbortController()
  let next = 0
  const outcomes = { resumed: 0, committedUnheard: 0 }
  try {
    for (let kill = 0; kill < KILLS; kill++) {
      const script = join(import.meta.dirname, 'kill-child.ts')
      const effects = 1 + random(EFFECTS)
      const args = [script, root, String(SEED), String(next), String(effects)]
      const child = spawnSync(process.execPath, args, { encoding: 'utf8' })
      expect({ signal: child.signal, stderr: child.stderr }).toEqual({
        signal: 'SIGKILL',
        stderr: '',
      })
      next += child.stdout.split('\n').filter((line) => line !== '').length

      await using store = await ContentStore.open(
        { root: `${root}/content`, recordsPath: `${root}/content.db` },
        { published: NOTHING_PUBLISHED, log: { info: () => undefined } },
      )
      const here = new Set<string>()
      for await (const page of store.list([])) for (const { digest } of page) here.add(digest)
      // The one under way may be there as well: then its number is over.
      const underWay = uploadOf(SEED, next)
      if (here.has(underWay.digest)) {
        outcomes.committedUnheard += 1
        next += 1
      } else if (
        (await store.statuses([])).some(({ ref, offset }) => ref === underWay.ref && offset > 0)
      ) {
        outcomes.resumed += 1
      }
      expect(here.size).toBe(next)
      for (let index = Math.max(0, next - 5); index < next; index++) {
        const { digest, size, labels } = uploadOf(SEED, index)
        expect(await store.info(digest)).toMatchObject({ digest, size, labels })
        const pieces: Uint8Array[] = []
        for await (const piece of store.read({ digest, offset: 0, size: 0 }, signal)) {
          pieces.push(piece)
        }
        expect(digestOf(Buffer.concat(pieces))).toBe(digest)
      }
    }
    // Deaths on both sides of a commit, or the test would show nothing.
    expect(next).toBeGreaterThan(KILLS)
    expect(outcomes.resumed).toBeGreaterThan(0)
    expect(outcomes.committedUnheard).toBeGreaterThan(0)
  } finally {
    rmSync(root, { recursive: true })
  }
}, 120_000)
