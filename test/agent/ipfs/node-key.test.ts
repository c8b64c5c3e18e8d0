import { chmod, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { readOrCreateNodeKey } from '../../../agent/ipfs/node-key.ts'
import { failureOf } from '../../support/failure-of.ts'

let work = ''
beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'node-key-'))
})
afterAll(() => rm(work, { recursive: true }))

test('the key is made once, and then read, by processes that start at the same time too', async () => {
  const path = join(work, 'made', 'node-key')
  const keys = await Promise.all(Array.from({ length: 5 }, () => readOrCreateNodeKey(path)))
  keys.push(await readOrCreateNodeKey(path))
  expect(new Set(keys.map((key) => Buffer.from(key.raw).toString('hex'))).size).toBe(1)
  expect((await stat(path)).mode & 0o777).toBe(0o600)
  expect(await readdir(join(work, 'made'))).toEqual(['node-key'])
})

test('a file that others can read, or that holds something else, is refused with what to do', async () => {
  const path = join(work, 'refused')
  await readOrCreateNodeKey(path)
  await chmod(path, 0o644)
  const readable = await failureOf(() => readOrCreateNodeKey(path))
  expect(readable.code).toBe('FAILED_PRECONDITION')
  expect(readable.message).toContain(`has mode 644; run chmod 600 ${path}`)
  await chmod(path, 0o600)
  await writeFile(path, 'not a key')
  expect((await failureOf(() => readOrCreateNodeKey(path))).message).toMatch(
    /does not hold a private key/,
  )
})
