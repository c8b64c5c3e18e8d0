import { existsSync, mkdirSync, readdirSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import type { Log } from './log.ts'

/** Of sqlite3.h, in the low byte of an extended code. */
const SQLITE_BUSY = 5
const SQLITE_CORRUPT = 11
const SQLITE_NOTADB = 26

const DATABASE_SUFFIXES = ['', '-wal', '-shm'] as const

/** Where damaged parts of a root are put, numbered. */
const ASIDE = 'set-aside'

/**
 * Looks at the databases of a root before anybody opens them. One that is damaged, and snapshots whose layers the catalog does not
 * know, are moved into `set-aside/<number>`, so that the agent starts: what is missing is made anew when it is asked for. Snapshots
 * name layers by numbers of the catalog, which a new catalog gives to other layers: they are never kept without it. Containers that
 * run keep their directories, which are only moved. Does nothing while another agent has the root.
 */
export function setAsideDamaged(root: string, log: Pick<Log, 'error'>): void {
  const [catalogPath, snapshotsPath] = [join(root, 'catalog.db'), join(root, 'snapshots.db')]
  const catalog = look(catalogPath, 'SELECT id AS layer FROM layers')
  const snapshots = look(
    snapshotsPath,
    'SELECT DISTINCT layer FROM snapshots WHERE layer IS NOT NULL',
  )
  const contentPath = join(root, 'content.db')
  const content = look(contentPath, 'SELECT 0 AS layer FROM blobs LIMIT 0')
  if ([catalog, snapshots, content].some(({ state }) => state === 'in use')) return
  const known = new Set(catalog.layers)
  const isOrphaned = snapshots.layers.some((layer) => !known.has(layer))
  const isAside = snapshots.state === 'damaged' || isOrphaned
  const isDamaged = catalog.state === 'damaged' || content.state === 'damaged'
  if (!isDamaged && !isAside) return
  const folder = newFolder(join(root, ASIDE))
  if (catalog.state === 'damaged') {
    moveDatabase(catalogPath, folder)
    log.error(
      { folder, reason: catalog.reason },
      `the catalog of layers was damaged (${catalog.reason}) and was put into ${folder}: images are fetched again when they are asked for`,
    )
  }
  if (content.state === 'damaged') {
    moveDatabase(contentPath, folder)
    log.error(
      { folder, reason: content.reason },
      `what the content proxy knew of its blobs was damaged (${content.reason}) and was put into ${folder}: blobs are found by their files, and those of lazy layers by their layers`,
    )
  }
  if (!isAside) return
  moveDatabase(snapshotsPath, folder)
  move(join(root, 'snapshots'), folder)
  const why = snapshots.reason ?? 'they name layers that the catalog does not know'
  log.error(
    { folder, reason: why },
    `the snapshots of this node were lost (${why}) and were put into ${folder}: they are made anew from their images when they are asked for; remove the folder once the containers that run by now have ended`,
  )
}

type Look = {
  readonly state: 'sound' | 'damaged' | 'in use'
  readonly reason?: string
  readonly layers: readonly number[]
}

/** Of a database that is not there, nothing is damaged. */
function look(path: string, query: string): Look {
  if (!existsSync(path)) return { state: 'sound', layers: [] }
  let database: DatabaseSync | undefined
  try {
    database = new DatabaseSync(path)
    const [result] = database.prepare('PRAGMA quick_check(1)').all()
    const verdict = String(result?.['quick_check'])
    if (verdict !== 'ok') return { state: 'damaged', reason: verdict, layers: [] }
    const isEmpty = database.prepare('SELECT 1 FROM sqlite_schema LIMIT 1').get() === undefined
    const rows = isEmpty ? [] : database.prepare(query).all()
    return { state: 'sound', layers: rows.map((row) => Number(row['layer'])) }
  } catch (error) {
    const code = error instanceof Error && 'errcode' in error ? Number(error.errcode) & 0xff : 0
    if (code === SQLITE_BUSY) return { state: 'in use', layers: [] }
    const reason = error instanceof Error ? error.message : String(error)
    if (code === SQLITE_CORRUPT || code === SQLITE_NOTADB) {
      return { state: 'damaged', reason, layers: [] }
    }
    throw error
  } finally {
    database?.close()
  }
}

function newFolder(parent: string): string {
  mkdirSync(parent, { recursive: true, mode: 0o700 })
  const numbers = readdirSync(parent).map(Number).filter(Number.isSafeInteger)
  const folder = join(parent, String(Math.max(0, ...numbers) + 1))
  mkdirSync(folder, { mode: 0o700 })
  return folder
}

function moveDatabase(path: string, folder: string): void {
  for (const suffix of DATABASE_SUFFIXES) move(`${path}${suffix}`, folder)
}

function move(path: string, folder: string): void {
  if (existsSync(path)) renameSync(path, join(folder, path.slice(path.lastIndexOf('/') + 1)))
}
