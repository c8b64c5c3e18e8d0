import { DatabaseSync, type StatementSync } from 'node:sqlite'
import { LayerError } from '../errors.ts'
import type { RepositoryScope } from '../image-registries.ts'
import type { Digest } from '../oci/digest.ts'
import type { RegistryPlace } from '../oci/registry-reference.ts'
import { preparedOnce } from '../prepared-once.ts'
import { type SyncFile, WriteAheadLog } from '../write-ahead-log.ts'

/** How a layer's blob holds its tar, found by looking at the bytes; the last two are read by another tool's tables. */
export type LayerFormat = 'tar' | 'tar+gzip' | 'tar+zstd' | 'tar+zstd:chunked' | 'tar+estargz'

export type LayerState =
  /** Being read for its table of contents; what is on disk may be half of it. */
  | 'building'
  /** Can be mounted. */
  | 'ready'
  /** Its files are gone or damaged; it is built again, under the same id, when a container needs it. */
  | 'lost'
  /** Its bytes turned out not to be what its image promised: every read of it fails. */
  | 'corrupt'

/** A layer on this node, named by the CID of its blob: the only name that binds its bytes before all of them are here. */
export type LayerRecord = {
  readonly id: number
  readonly blobCid: string
  readonly blobDigest: string
  readonly diffId: string
  readonly mediaType: string
  readonly format: LayerFormat
  /** Bytes of the layer file: the uncompressed tar, or more where eStargz is arranged anew; 0 while building. */
  readonly layerSize: number
  readonly blobSize: number
  readonly inodes: number
  /** It has directories that its tar does not mention: their attributes are those of the layers below, if these have them. */
  readonly inheritsDirs: boolean
  /** Its root is opaque: nothing of the layers below shows. Overlayfs does not look at the mark there. */
  readonly hidesBelow: boolean
  readonly state: LayerState
  /** Why it could not be mounted before it was read whole; undefined if it could. */
  readonly notLazyBecause: string | undefined
  /** True once the SHA-256 of all its bytes was found equal to the diff ID. */
  readonly verified: boolean
  /** The side index that it was built by, which is the word of whoever published it; undefined if only its own bytes were. */
  readonly indexCid: string | undefined
  /** Milliseconds since the epoch. */
  readonly lastUsedMs: number
}

/** What is found out about a layer while it is made mountable. */
export type FoundLayer = Pick<
  LayerRecord,
  | 'format'
  | 'layerSize'
  | 'inodes'
  | 'inheritsDirs'
  | 'hidesBelow'
  | 'notLazyBecause'
  | 'verified'
  | 'indexCid'
>

/** One layer as an image names it. `chainId` stands for it and all layers below. */
export type ImageLayer = {
  readonly layerChainId: string
  readonly diffId: Digest
  readonly blobDigest: Digest
  readonly blobCid: string
  readonly blobSize: number
  readonly mediaType: string
  readonly annotations: Readonly<Record<string, string>>
  /** CIDv1 of the side index that lies beside the image for it. */
  readonly indexCid: string | undefined
  /** The image is in a registry, and so is the blob: its parts have no CIDs. `blobCid` is made of its digest. */
  readonly inRegistry?: boolean
}

/** Where an image is in a registry, and who pulled it from there. */
export type ImageOrigin = RegistryPlace & {
  /** The Kubernetes namespace of the pod that it was pulled for; '' if that is not known. */
  readonly namespace: string
  /** The name that it was pulled by. */
  readonly reference: string
}

/** An image that this node's registry served, was told to pull, or that containerd pulls from another registry. */
export type ImageRecord = {
  readonly id: number
  /** CIDv1 of the image's directory; of an image in a registry, made of its manifest's digest. */
  readonly rootCid: string
  readonly manifestDigest: string
  /** Milliseconds since the epoch. */
  readonly seenAtMs: number
  /** `TrustPolicies.fingerprint` of those that let it run. */
  readonly trustedBy: string
  readonly layers: readonly ImageLayer[]
  /** The name in a registry that it was first pulled by; undefined for one on IPFS. */
  readonly reference?: string | undefined
}

const SCHEMA = `
  CREATE TABLE layers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again: it is the FUSE inode of the layer's file
    blob_cid TEXT NOT NULL UNIQUE,
    blob_digest TEXT NOT NULL,
    diff_id TEXT NOT NULL,
    media_type TEXT NOT NULL,
    format TEXT NOT NULL,
    layer_size INTEGER NOT NULL,
    blob_size INTEGER NOT NULL,
    inodes INTEGER NOT NULL,
    inherits_dirs INTEGER NOT NULL,
    hides_below INTEGER NOT NULL,
    state TEXT NOT NULL,
    not_lazy_because TEXT,
    verified INTEGER NOT NULL,
    last_used_ms INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX layers_by_diff_id ON layers (diff_id);
  CREATE TABLE images (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    root_cid TEXT NOT NULL,
    manifest_digest TEXT NOT NULL,
    seen_at_ms INTEGER NOT NULL,
    UNIQUE (root_cid, manifest_digest)
  ) STRICT;
  CREATE TABLE image_layers (
    image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    chain_id TEXT NOT NULL,
    diff_id TEXT NOT NULL,
    blob_digest TEXT NOT NULL,
    blob_cid TEXT NOT NULL,
    blob_size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    annotations TEXT NOT NULL,
    PRIMARY KEY (image_id, position)
  ) STRICT;
  CREATE INDEX image_layers_by_chain_id ON image_layers (chain_id);
`

const IN_REGISTRY =
  'EXISTS (SELECT 1 FROM image_origins o WHERE o.image_id = image_layers.image_id) AS in_registry'

/** What makes each version of the schema of the one before, from an empty file on. */
const SCHEMA_STEPS: readonly string[] = [
  SCHEMA,
  `ALTER TABLE layers ADD COLUMN index_cid TEXT;
   ALTER TABLE image_layers ADD COLUMN index_cid TEXT;`,
  `ALTER TABLE images ADD COLUMN trusted_by TEXT NOT NULL DEFAULT '';`,
  `CREATE TABLE image_origins (
     image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
     host TEXT NOT NULL,
     repository TEXT NOT NULL,
     namespace TEXT NOT NULL,
     reference TEXT NOT NULL,
     PRIMARY KEY (image_id, host, repository, namespace)
   ) STRICT;`,
]

/**
 * Which images and layers this node knows, in an embedded database; every call is one transaction, on disk once `wal.flushed` resolves.
 */
export class Catalog implements AsyncDisposable {
  readonly #db: DatabaseSync
  /** Where its changes are until they are on disk. */
  readonly wal: WriteAheadLog
  readonly #sql: (text: string) => StatementSync
  readonly #known = new Map<number, LayerRecord>()

  /**
   * Opens or makes the database at `path`. Throws LayerError UNAVAILABLE if another process has it open, FAILED_PRECONDITION
   * if a newer agent wrote it.
   */
  constructor(path: string, { sync }: { readonly sync?: SyncFile | undefined } = {}) {
    this.#db = new DatabaseSync(path)
    this.#sql = preparedOnce(this.#db)
    try {
      // One agent for one root: the layer files beside it are written by whoever holds this lock.
      this.#db.exec('PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL')
      this.#db.exec('PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; BEGIN IMMEDIATE; COMMIT')
      this.#migrate(path)
      this.wal = new WriteAheadLog(this.#db, path, sync)
    } catch (error) {
      this.#db.close()
      if (!isBusy(error)) throw error
      throw new LayerError('UNAVAILABLE', `${path} is in use by another agent: stop it first`, {
        path,
      })
    }
  }

  /** Remembers an image, or that it was seen again. */
  rememberImage(image: Omit<ImageRecord, 'id'>): ImageRecord {
    const remembered = this.#transaction(() => {
      const row = this.#sql(
        `INSERT INTO images (root_cid, manifest_digest, seen_at_ms, trusted_by) VALUES (?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET seen_at_ms = excluded.seen_at_ms, trusted_by = excluded.trusted_by RETURNING id`,
      ).get(image.rootCid, image.manifestDigest, image.seenAtMs, image.trustedBy)
      const id = Number(row?.['id'])
      this.#sql('DELETE FROM image_layers WHERE image_id = ?').run(id)
      image.layers.forEach((layer, position) => {
        this.#sql('INSERT INTO image_layers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)').run(
          id,
          position,
          layer.layerChainId,
          layer.diffId,
          layer.blobDigest,
          layer.blobCid,
          layer.blobSize,
          layer.mediaType,
          JSON.stringify(layer.annotations),
          layer.indexCid ?? null,
        )
      })
      return { ...image, id }
    })
    this.wal.committed()
    return remembered
  }

  hasImage(rootCid: string, manifestDigest: string): boolean {
    const sql = 'SELECT 1 FROM images WHERE root_cid = ? AND manifest_digest = ?'
    return this.#sql(sql).get(rootCid, manifestDigest) !== undefined
  }

  /** Whether an image under this root is known of which every layer can be mounted. */
  isPulled(rootCid: string): boolean {
    const sql = `SELECT 1 FROM images WHERE root_cid = ? AND NOT EXISTS (
       SELECT 1 FROM image_layers LEFT JOIN layers USING (blob_cid) WHERE image_id = images.id AND state IS NOT 'ready')`
    return this.#sql(sql).get(rootCid) !== undefined
  }

  /** Remembers where an image is in a registry, and for whom it was pulled. */
  addOrigin(imageId: number, { host, repository, namespace, reference }: ImageOrigin): void {
    this.#change(
      'INSERT OR IGNORE INTO image_origins VALUES (?, ?, ?, ?, ?)',
      imageId,
      host,
      repository,
      namespace,
      reference,
    )
  }

  /** Every repository from which an image with this blob was pulled, and the namespaces it was pulled for; the last pull first. */
  scopesOf(blobCid: string): RepositoryScope[] {
    const scopes = new Map<string, { place: RegistryPlace; namespaces: string[] }>()
    const rows = this.#sql(
      `SELECT DISTINCT host, repository, namespace, seen_at_ms FROM image_origins
       JOIN images ON images.id = image_origins.image_id
       JOIN image_layers ON image_layers.image_id = images.id
       WHERE blob_cid = ? ORDER BY seen_at_ms DESC`,
    ).all(blobCid)
    for (const row of rows) {
      const place = { host: String(row['host']), repository: String(row['repository']) }
      const key = `${place.host}/${place.repository}`
      const namespaces = scopes.get(key)?.namespaces ?? []
      const namespace = String(row['namespace'])
      if (namespace !== '' && !namespaces.includes(namespace)) namespaces.push(namespace)
      scopes.set(key, { place, namespaces })
    }
    return [...scopes.values()].map(({ place, namespaces }) => ({ ...place, namespaces }))
  }

  /** Images of which a layer has this chain ID, the one seen last first. */
  imagesWithChain(layerChainId: string): ImageRecord[] {
    return this.#images(
      `SELECT DISTINCT images.* FROM images JOIN image_layers ON image_id = images.id
       WHERE chain_id = ? ORDER BY seen_at_ms DESC, images.id DESC`,
      layerChainId,
    )
  }

  images(): ImageRecord[] {
    return this.#images('SELECT * FROM images ORDER BY seen_at_ms DESC, id DESC')
  }

  markTrusted(id: number, trustedBy: string): void {
    this.#change('UPDATE images SET trusted_by = ? WHERE id = ?', trustedBy, id)
  }

  forgetImage(id: number): void {
    this.#change('DELETE FROM images WHERE id = ?', id)
  }

  /** Whether there is a layer that can be mounted and was not found to be its diff ID yet. */
  hasUnverifiedLayers(): boolean {
    const sql = `SELECT 1 FROM layers WHERE state = 'ready' AND verified = 0 LIMIT 1`
    return this.#sql(sql).get() !== undefined
  }

  /** Asked for each layer of a chain at every Prepare: answered from memory until anything about layers changes. */
  layer(id: number): LayerRecord | undefined {
    const known = this.#known.get(id)
    if (known !== undefined) return known
    const [found] = this.#layers('WHERE id = ?', id)
    if (found !== undefined) this.#known.set(id, found)
    return found
  }

  layerByBlob(blobCid: string): LayerRecord | undefined {
    return this.#layers('WHERE blob_cid = ?', blobCid)[0]
  }

  /** Layers that can be mounted and whose images name their blob so. */
  layersByBlobDigest(blobDigest: string): LayerRecord[] {
    return this.#layers(`WHERE blob_digest = ? AND state = 'ready' ORDER BY id`, blobDigest)
  }

  /** All layers that claim to be this tar; more than one if it was published in different ways. */
  layersByDiffId(diffId: string): LayerRecord[] {
    return this.#layers('WHERE diff_id = ? ORDER BY id', diffId)
  }

  layers(): LayerRecord[] {
    return this.#layers('ORDER BY id')
  }

  /** The id of a layer that is about to be read; the one it had, if snapshots may still name it by that. */
  beginLayer(
    layer: Pick<LayerRecord, 'blobCid' | 'blobDigest' | 'diffId' | 'mediaType' | 'blobSize'>,
  ): number {
    this.#known.clear()
    const row = this.#sql(
      `INSERT INTO layers (blob_cid, blob_digest, diff_id, media_type, format, layer_size, blob_size, inodes,
         inherits_dirs, hides_below, state, not_lazy_because, verified, last_used_ms)
       VALUES (?, ?, ?, ?, 'tar', 0, ?, 0, 0, 0, 'building', NULL, 0, ?)
       ON CONFLICT DO UPDATE SET state = 'building', verified = 0 RETURNING id`,
    ).get(
      layer.blobCid,
      layer.blobDigest,
      layer.diffId,
      layer.mediaType,
      layer.blobSize,
      Date.now(),
    )
    this.wal.committed()
    return Number(row?.['id'])
  }

  /** Every way in which an image on this node describes the layer with this blob; of the image seen last first. */
  imageLayers(blobCid: string): ImageLayer[] {
    return this.#imageLayers(
      `SELECT image_layers.*, ${IN_REGISTRY} FROM image_layers JOIN images ON image_id = images.id
       WHERE blob_cid = ? ORDER BY seen_at_ms DESC`,
      blobCid,
    )
  }

  /** The side index that every image with this layer names; undefined if they do not all name the same one. */
  agreedIndex(blobCid: string): string | undefined {
    const named = this.#sql('SELECT DISTINCT index_cid FROM image_layers WHERE blob_cid = ?')
      .all(blobCid)
      .map((row) => textOrUndefined(row['index_cid']))
    return named.length === 1 ? named[0] : undefined
  }

  /** The layer's files are durable: it can be mounted from now on. */
  finishLayer(id: number, found: FoundLayer): void {
    this.#changeLayers(
      `UPDATE layers SET state = 'ready', format = ?, layer_size = ?, inodes = ?, inherits_dirs = ?, hides_below = ?,
         not_lazy_because = ?, verified = ?, index_cid = ? WHERE id = ?`,
      found.format,
      found.layerSize,
      found.inodes,
      Number(found.inheritsDirs),
      Number(found.hidesBelow),
      found.notLazyBecause ?? null,
      Number(found.verified),
      found.indexCid ?? null,
      id,
    )
  }

  markVerified(id: number): void {
    this.#changeLayers('UPDATE layers SET verified = 1 WHERE id = ?', id)
  }

  markCorrupt(id: number): void {
    this.#changeLayers(`UPDATE layers SET state = 'corrupt' WHERE id = ?`, id)
  }

  markLost(id: number): void {
    this.#changeLayers(`UPDATE layers SET state = 'lost', verified = 0 WHERE id = ?`, id)
  }

  /** When it was used last: nobody waits for that to be on disk. */
  touchLayer(id: number): void {
    this.#known.clear()
    this.#sql('UPDATE layers SET last_used_ms = ? WHERE id = ?').run(Date.now(), id)
  }

  removeLayer(id: number): void {
    this.#changeLayers('DELETE FROM layers WHERE id = ?', id)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.wal[Symbol.asyncDispose]()
    this.#db.close()
  }

  #change(sql: string, ...parameters: (string | number | null)[]): void {
    this.#sql(sql).run(...parameters)
    this.wal.committed()
  }

  #changeLayers(sql: string, ...parameters: (string | number | null)[]): void {
    this.#known.clear()
    this.#change(sql, ...parameters)
  }

  #migrate(path: string): void {
    const version = Number(this.#db.prepare('PRAGMA user_version').get()?.['user_version'])
    const known = SCHEMA_STEPS.length
    if (version > known) {
      throw new LayerError(
        'FAILED_PRECONDITION',
        `${path} has schema version ${version}, this agent knows ${known}: run the newer agent`,
        { path, version },
      )
    }
    if (version === known) return
    this.#transaction(() => {
      for (const step of SCHEMA_STEPS.slice(version)) this.#db.exec(step)
      this.#db.exec(`PRAGMA user_version = ${known}`)
    })
  }

  #images(sql: string, ...parameters: (string | number)[]): ImageRecord[] {
    return this.#sql(sql)
      .all(...parameters)
      .map((row) => ({
        id: Number(row['id']),
        rootCid: String(row['root_cid']),
        manifestDigest: String(row['manifest_digest']),
        seenAtMs: Number(row['seen_at_ms']),
        trustedBy: String(row['trusted_by']),
        reference: this.#referenceOf(Number(row['id'])),
        layers: this.#imageLayers(
          `SELECT *, ${IN_REGISTRY} FROM image_layers WHERE image_id = ? ORDER BY position`,
          Number(row['id']),
        ),
      }))
  }

  #referenceOf(imageId: number): string | undefined {
    const row = this.#sql(
      'SELECT reference FROM image_origins WHERE image_id = ? ORDER BY rowid LIMIT 1',
    ).get(imageId)
    return textOrUndefined(row?.['reference'])
  }

  #imageLayers(sql: string, parameter: string | number): ImageLayer[] {
    return this.#sql(sql)
      .all(parameter)
      .map((row) => ({
        layerChainId: String(row['chain_id']),
        diffId: String(row['diff_id']) as Digest,
        blobDigest: String(row['blob_digest']) as Digest,
        blobCid: String(row['blob_cid']),
        blobSize: Number(row['blob_size']),
        mediaType: String(row['media_type']),
        annotations: JSON.parse(String(row['annotations'])) as Record<string, string>,
        indexCid: textOrUndefined(row['index_cid']),
        inRegistry: row['in_registry'] === 1,
      }))
  }

  #layers(where: string, ...parameters: (string | number)[]): LayerRecord[] {
    return this.#sql(`SELECT * FROM layers ${where}`)
      .all(...parameters)
      .map((row) => ({
        id: Number(row['id']),
        blobCid: String(row['blob_cid']),
        blobDigest: String(row['blob_digest']),
        diffId: String(row['diff_id']),
        mediaType: String(row['media_type']),
        format: String(row['format']) as LayerFormat,
        layerSize: Number(row['layer_size']),
        blobSize: Number(row['blob_size']),
        inodes: Number(row['inodes']),
        inheritsDirs: row['inherits_dirs'] === 1,
        hidesBelow: row['hides_below'] === 1,
        state: String(row['state']) as LayerState,
        notLazyBecause: textOrUndefined(row['not_lazy_because']),
        verified: row['verified'] === 1,
        indexCid: textOrUndefined(row['index_cid']),
        lastUsedMs: Number(row['last_used_ms']),
      }))
  }

  #transaction<T>(work: () => T): T {
    this.#db.exec('BEGIN IMMEDIATE')
    try {
      const result = work()
      this.#db.exec('COMMIT')
      return result
    } catch (error) {
      this.#db.exec('ROLLBACK')
      throw error
    }
  }
}

function textOrUndefined(column: unknown): string | undefined {
  return typeof column === 'string' ? column : undefined
}

/** SQLITE_BUSY: somebody else holds the lock. */
function isBusy(error: unknown): boolean {
  return error instanceof Error && 'errcode' in error && error.errcode === 5
}
