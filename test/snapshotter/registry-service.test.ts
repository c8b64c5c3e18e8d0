import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import type { AddressInfo } from 'node:net'
import { fastify } from 'fastify'
import { CID } from 'multiformats/cid'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { IpfsImageDirectory } from '../../snapshotter/dag/ipfs-image-directory.ts'
import { BlockError } from '../../snapshotter/errors.ts'
import { MEDIA_TYPES } from '../../snapshotter/oci/descriptor.ts'
import { digestOf } from '../../snapshotter/oci/digest.ts'
import { registryService, type ServedManifest } from '../../snapshotter/registry-service.ts'
import { MemoryBlocks } from '../support/memory-blocks.ts'
import { seeded } from '../support/seeded.ts'
import { testImage } from '../support/test-image.ts'

const random = seeded(3)
const layerBytes = Uint8Array.from({ length: 700_000 }, () => random(256))
const image = testImage([layerBytes])
const layerDigest = digestOf(layerBytes)
const unknownDigest = digestOf(Buffer.from('nobody has this'))

const blocks = new MemoryBlocks()
const served: ServedManifest[] = []
const warnings: string[] = []
const log = {
  debug() {},
  info() {},
  warn: (_: unknown, text: string) => void warnings.push(text),
  error() {},
}
const app = fastify()
let origin = ''
let rootCid: CID
let root = ''

beforeAll(async () => {
  rootCid = await blocks.addDirectory({ ...image.files, 'manifests/v1': image.manifest })
  root = rootCid.toString()
  const images = new IpfsImageDirectory(blocks)
  const onManifest = async (manifest: ServedManifest): Promise<void> => void served.push(manifest)
  await app.register(registryService({ images, log, onManifest }))
  origin = await app.listen({ host: '127.0.0.1', port: 0 })
})
afterAll(() => app.close())

const get = (path: string, init?: RequestInit): Promise<Response> => fetch(`${origin}${path}`, init)
const head = (path: string): Promise<Response> => get(path, { method: 'HEAD' })
async function errorOf(
  response: Response,
): Promise<{ status: number; code: string; message: string }> {
  expect(response.headers.get('content-type')).toMatch(/^application\/json/)
  const body = (await response.json()) as { errors: [{ code: string; message: string }] }
  return { status: response.status, code: body.errors[0].code, message: body.errors[0].message }
}

// The pull, discovery and error parts of the OCI distribution conformance suite (conformance/01_pull_test.go and 03), under its names.
describe('OCI Distribution Conformance: Pull', () => {
  test('GET /v2/ answers 200', async () => {
    const response = await get('/v2/')
    expect(response.status).toBe(200)
    expect(response.headers.get('docker-distribution-api-version')).toBe('registry/2.0')
  })

  test('HEAD request to nonexistent blob should result in 404 response', async () => {
    expect((await head(`/v2/${root}/blobs/${unknownDigest}`)).status).toBe(404)
  })

  test('HEAD request to existing blob should yield 200', async () => {
    const response = await head(`/v2/${root}/blobs/${layerDigest}`)
    expect(response.status).toBe(200)
    expect(response.headers.get('docker-content-digest')).toBe(layerDigest)
    expect(response.headers.get('content-length')).toBe('700000')
  })

  test('GET nonexistent blob should result in 404 response', async () => {
    const response = await get(`/v2/${root}/blobs/${unknownDigest}`)
    expect(await errorOf(response)).toMatchObject({ status: 404, code: 'BLOB_UNKNOWN' })
  })

  test('GET request to existing blob URL should yield 200', async () => {
    const response = await get(`/v2/${root}/blobs/${layerDigest}`)
    expect(response.status).toBe(200)
    expect(digestOf(new Uint8Array(await response.arrayBuffer()))).toBe(layerDigest)
    const config = await get(`/v2/${root}/blobs/${image.configDigest}`)
    expect(digestOf(new Uint8Array(await config.arrayBuffer()))).toBe(image.configDigest)
  })

  test('HEAD request to nonexistent manifest should return 404', async () => {
    expect((await head(`/v2/${root}/manifests/.INVALID_MANIFEST_NAME`)).status).toBe(400)
    expect((await head(`/v2/${root}/manifests/nothere`)).status).toBe(404)
  })

  test('HEAD request to manifest path (digest) should yield 200 response', async () => {
    const response = await head(`/v2/${root}/manifests/${image.manifestDigest}`)
    expect(response.status).toBe(200)
    expect(response.headers.get('docker-content-digest')).toBe(image.manifestDigest)
    expect(response.headers.get('content-type')).toBe(MEDIA_TYPES.ociManifest)
    expect(response.headers.get('content-length')).toBe(String(image.manifest.length))
  })

  test('HEAD request to manifest path (tag) should yield 200 response', async () => {
    const response = await head(`/v2/${root}/manifests/v1`)
    expect(response.status).toBe(200)
    expect(response.headers.get('docker-content-digest')).toBe(image.manifestDigest)
  })

  test('GET nonexistent manifest should return 404', async () => {
    const response = await get(`/v2/${root}/manifests/nothere`)
    const error = await errorOf(response)
    expect(error).toMatchObject({ status: 404, code: 'MANIFEST_UNKNOWN' })
    expect(error.message).toMatch(/its tags are: latest, v1/)
  })

  test('GET request to manifest path (digest) should yield 200 response', async () => {
    const response = await get(`/v2/${root}/manifests/${image.manifestDigest}`)
    expect(response.headers.get('content-type')).toBe(MEDIA_TYPES.ociManifest)
    expect(Buffer.from(await response.arrayBuffer())).toEqual(Buffer.from(image.manifest))
  })

  test('GET request to manifest path (tag) should yield 200 response', async () => {
    const response = await get(`/v2/${root}/manifests/latest?ns=ipdr.internal`)
    expect(Buffer.from(await response.arrayBuffer())).toEqual(Buffer.from(image.manifest))
  })

  test('404 and 400 response bodies should contain OCI-conforming JSON message', async () => {
    const response = await get(`/v2/${root}/manifests/sha256:totallywrong`)
    expect(await errorOf(response)).toMatchObject({ status: 400, code: 'DIGEST_INVALID' })
    const blob = await get(`/v2/${root}/blobs/sha256:totallywrong`)
    expect(await errorOf(blob)).toMatchObject({ status: 400, code: 'DIGEST_INVALID' })
  })
})

describe('OCI Distribution Conformance: Content Discovery', () => {
  test('GET request to list tags should yield 200 response', async () => {
    expect(await (await get(`/v2/${root}/tags/list`)).json()).toEqual({
      name: root,
      tags: ['latest', 'v1'],
    })
  })

  test('GET number of tags should be limitable by `n` query parameter, and start after `last`', async () => {
    const response = await get(`/v2/${root}/tags/list?n=1`)
    expect(await response.json()).toMatchObject({ tags: ['latest'] })
    expect(response.headers.get('link')).toBe(`</v2/${root}/tags/list?n=1&last=latest>; rel="next"`)
    expect(await (await get(`/v2/${root}/tags/list?n=1&last=latest`)).json()).toMatchObject({
      tags: ['v1'],
    })
    expect(await (await get(`/v2/${root}/tags/list?n=0`)).json()).toMatchObject({ tags: [] })
  })

  test('GET request to nonexistent referrers should yield 200 with an empty index', async () => {
    const response = await get(`/v2/${root}/referrers/${unknownDigest}`)
    expect(response.headers.get('content-type')).toBe(MEDIA_TYPES.ociIndex)
    expect(await response.json()).toMatchObject({ schemaVersion: 2, manifests: [] })
    expect((await get(`/v2/${root}/referrers/nodigest`)).status).toBe(400)
  })

  test('GET /v2/_catalog is an empty list', async () => {
    expect(await (await get('/v2/_catalog')).json()).toEqual({ repositories: [] })
  })
})

test.each([
  ['POST', 'blobs/uploads/'],
  ['PUT', 'manifests/latest'],
  ['PATCH', 'blobs/uploads/1'],
  ['DELETE', 'manifests/latest'],
])('%s %s is refused as UNSUPPORTED, with how to publish', async (method, path) => {
  const body = method === 'DELETE' ? null : 'x'
  const response = await get(`/v2/${root}/${path}`, { method, body })
  expect(response.headers.get('allow')).toBe('GET, HEAD')
  const error = await errorOf(response)
  expect(error).toMatchObject({ status: 405, code: 'UNSUPPORTED' })
  expect(error.message).toMatch(/put images on IPFS with ipdr push/)
})

test('a manifest or blob that the client has is not sent again', async () => {
  for (const [path, digest] of [
    [`manifests/latest`, image.manifestDigest],
    [`blobs/${layerDigest}`, layerDigest],
  ]) {
    const response = await get(`/v2/${root}/${path}`, {
      headers: { 'if-none-match': `"${digest}"` },
    })
    expect(response.status).toBe(304)
  }
})

describe('ranges of a blob', () => {
  const range = (value: string, more: Record<string, string> = {}): Promise<Response> =>
    get(`/v2/${root}/blobs/${layerDigest}`, { headers: { range: value, ...more } })

  test.each([
    ['bytes=0-0', 0, 1],
    ['bytes=262140-262150', 262_140, 262_151],
    ['bytes=699990-', 699_990, 700_000],
    ['bytes=-10', 699_990, 700_000],
    ['bytes=100-99999999', 100, 700_000],
  ])('%s is answered with just these bytes', async (value, start, end) => {
    const response = await range(value)
    expect(response.status).toBe(206)
    expect(response.headers.get('content-range')).toBe(`bytes ${start}-${end - 1}/700000`)
    const bytes = Buffer.from(await response.arrayBuffer())
    expect(Buffer.compare(bytes, layerBytes.subarray(start, end))).toBe(0)
  })

  test('a range after the end is 416 with the size', async () => {
    const response = await range('bytes=700000-')
    expect(response.status).toBe(416)
    expect(response.headers.get('content-range')).toBe('bytes */700000')
  })

  test.each(['bytes=5-2', 'lines=1-2', 'bytes=0-1,5-6'])(
    '%s, which cannot be answered in part, is answered with all or refused',
    async (value) => {
      const response = await range(value)
      expect([200, 416]).toContain(response.status)
      await response.arrayBuffer()
    },
  )

  test('If-Range with another digest gives the whole blob', async () => {
    const response = await range('bytes=0-9', { 'if-range': `"${unknownDigest}"` })
    expect(response.status).toBe(200)
    expect((await response.arrayBuffer()).byteLength).toBe(700_000)
  })
})

describe('names', () => {
  test('the CID is the name, follows ipfs/, or is the tag of any name', async () => {
    for (const path of [
      `${root}/manifests/latest`,
      `ipfs/${root}/manifests/v1`,
      `team/app/manifests/${root}`,
    ]) {
      const response = await get(`/v2/${path}`)
      expect([path, response.headers.get('docker-content-digest')]).toEqual([
        path,
        image.manifestDigest,
      ])
      await response.arrayBuffer()
    }
  })

  test('a CIDv0 as a tag is the same image', async () => {
    const v0 = CID.createV0(rootCid.multihash as never)
    expect(
      (await head(`/v2/app/manifests/${v0.toString()}`)).headers.get('docker-content-digest'),
    ).toBe(image.manifestDigest)
  })

  test('a name without CID is known by the digests of what was pulled under it, and by no others', async () => {
    await (await get(`/v2/pulled/manifests/${root}`)).arrayBuffer()
    expect((await head(`/v2/pulled/manifests/${image.manifestDigest}`)).status).toBe(200)
    expect((await head(`/v2/pulled/blobs/${layerDigest}`)).status).toBe(200)
    expect((await head(`/v2/other/blobs/${layerDigest}`)).status).toBe(404)
    const error = await errorOf(await get(`/v2/other/manifests/latest`))
    expect(error).toMatchObject({ status: 404, code: 'MANIFEST_UNKNOWN' })
    expect(error.message).toMatch(/pull ipdr\.internal\/<cid> or ipdr\.internal\/other:<cid>/)
  })

  test('a name with upper-case letters is refused with the CID to write instead', async () => {
    const v0 = CID.createV0(rootCid.multihash as never).toString()
    const error = await errorOf(await get(`/v2/${v0}/manifests/latest`))
    expect(error).toMatchObject({ status: 400, code: 'NAME_INVALID' })
    expect(error.message).toContain(`write ipdr.internal/${root}`)
  })

  test.each(['/v2/..%2f..%2fetc/manifests/latest', '/v2/a%00b/manifests/latest'])(
    '%s is refused as NAME_INVALID',
    async (path) => {
      expect(await errorOf(await get(path))).toMatchObject({ status: 400, code: 'NAME_INVALID' })
    },
  )
})

test('an index is served as it is, and its children by digest', async () => {
  const index = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociIndex,
      manifests: [
        {
          mediaType: MEDIA_TYPES.ociManifest,
          digest: image.manifestDigest,
          size: image.manifest.length,
        },
      ],
    }),
  )
  const cid = await blocks.addDirectory({
    'manifests/latest': index,
    [`blobs/${image.manifestDigest}`]: image.manifest,
    [`blobs/${image.configDigest}`]: image.config,
  })
  const response = await get(`/v2/${cid.toString()}/manifests/latest`)
  expect(response.headers.get('content-type')).toBe(MEDIA_TYPES.ociIndex)
  expect(response.headers.get('docker-content-digest')).toBe(digestOf(index))
  expect((await get(`/v2/${cid.toString()}/manifests/${image.manifestDigest}`)).status).toBe(200)
})

test('whoever listens is told of a manifest before the client has it, by tag or digest, GET or HEAD', async () => {
  served.length = 0
  await head(`/v2/${root}/manifests/v1`)
  expect(served).toMatchObject([
    { digest: image.manifestDigest, mediaType: MEDIA_TYPES.ociManifest },
  ])
  expect(served[0]?.root.equals(rootCid)).toBe(true)
})

describe('content that cannot be had', () => {
  const refusing = (code: 'UNAVAILABLE' | 'DEADLINE_EXCEEDED' | 'DATA_LOSS') => async () => {
    throw new BlockError(code, 'gateway x refused the connection; no peer has the block')
  }

  test.each([
    ['UNAVAILABLE', 503, '10'],
    ['DEADLINE_EXCEEDED', 504, '10'],
    ['DATA_LOSS', 502, null],
  ] as const)('%s is %i, and says when to ask again', async (code, status, retryAfter) => {
    const failing = fastify()
    const images = { manifest: refusing(code), blob: refusing(code), tags: refusing(code) }
    await failing.register(registryService({ images, log }))
    try {
      const response = await failing.inject(`/v2/${root}/manifests/latest`)
      expect(response.statusCode).toBe(status)
      expect(response.headers['retry-after'] ?? null).toBe(retryAfter)
      expect(response.json()).toMatchObject({
        errors: [{ code: 'UNAVAILABLE', message: expect.stringMatching(/gateway x refused/) }],
      })
    } finally {
      await failing.close()
    }
  })

  test('a layer whose first block nobody has is an error, not a broken connection', async () => {
    const other = new MemoryBlocks()
    const cid = await other.addDirectory(image.files)
    const images = new IpfsImageDirectory(other)
    const blob = await images.blob(cid, layerDigest, new AbortController().signal)
    expect(blob.size).toBe(700_000)
    for (const [name, block] of other.blocks)
      if (block.length === 262_144) other.blocks.delete(name)
    const failing = fastify()
    await failing.register(registryService({ images, log }))
    try {
      const response = await failing.inject(`/v2/${cid.toString()}/blobs/${layerDigest}`)
      expect(response.statusCode).toBe(404)
      expect(response.json()).toMatchObject({ errors: [{ code: 'BLOB_UNKNOWN' }] })
    } finally {
      await failing.close()
    }
  })

  // Goal: no client ever holds a complete answer with wrong bytes. Method: a layer filed under the digest of another.
  test('a layer whose bytes are not those of its digest is cut off before its end', async () => {
    const other = new MemoryBlocks()
    const cid = await other.addDirectory({ ...image.files, [`blobs/${unknownDigest}`]: layerBytes })
    const lying = fastify()
    await lying.register(registryService({ images: new IpfsImageDirectory(other), log }))
    await lying.listen({ host: '127.0.0.1', port: 0 })
    const { port } = lying.server.address() as AddressInfo
    try {
      const request = httpRequest({
        port,
        path: `/v2/${cid.toString()}/blobs/${unknownDigest}`,
      }).end()
      const [response] = (await once(request, 'response')) as [import('node:http').IncomingMessage]
      expect(response.headers['content-length']).toBe('700000')
      let received = 0
      const ended = (async () => {
        for await (const chunk of response) received += (chunk as Buffer).length
      })()
      await expect(ended).rejects.toMatchObject({ code: 'ECONNRESET' })
      expect(received).toBeLessThan(700_000)
      expect(warnings).toContain('a blob could not be sent to its end')
    } finally {
      await lying.close()
    }
  })
})

describe('layouts of other publishers', () => {
  const json = (value: unknown): Uint8Array => Buffer.from(JSON.stringify(value))
  const describing = (bytes: Uint8Array, mediaType: string): object => ({
    mediaType,
    digest: digestOf(bytes),
    size: bytes.length,
  })

  async function addOciLayout(): Promise<{ root: CID; manifest: Uint8Array }> {
    const parts = [image.manifest, image.config, layerBytes]
    const files = parts.map((bytes) => [`blobs/sha256/${digestOf(bytes).slice(7)}`, bytes])
    const manifests = [describing(image.manifest, MEDIA_TYPES.ociManifest)]
    const root = await blocks.addDirectory({
      'oci-layout': json({ imageLayoutVersion: '1.0.0' }),
      'index.json': json({ schemaVersion: 2, manifests }),
      ...(Object.fromEntries(files) as Record<string, Uint8Array>),
    })
    return { root, manifest: image.manifest }
  }

  async function addIpcr(): Promise<{ root: CID; manifest: Uint8Array }> {
    const add = async (bytes: Uint8Array, mediaType: string): Promise<object> => {
      const urls = [`ipfs://${(await blocks.addFile(bytes)).toString()}`]
      return { ...describing(bytes, mediaType), urls }
    }
    const config = await add(image.config, MEDIA_TYPES.ociConfig)
    const layers = [await add(layerBytes, 'application/vnd.oci.image.layer.v1.tar')]
    const manifest = json({ schemaVersion: 2, config, layers })
    const descriptor = await add(manifest, MEDIA_TYPES.ociManifest)
    return { root: await blocks.addFile(json(descriptor)), manifest }
  }

  test.each([
    ['an OCI layout in a directory', addOciLayout],
    ['a descriptor with ipfs:// addresses', addIpcr],
  ])('manifest, config and layer of %s are served as of any image', async (_, add) => {
    const { root, manifest } = await add()
    for (const reference of ['latest', digestOf(manifest)]) {
      const response = await get(`/v2/${root.toString()}/manifests/${reference}`)
      expect(response.status).toBe(200)
      expect(digestOf(new Uint8Array(await response.arrayBuffer()))).toBe(digestOf(manifest))
    }
    for (const digest of [image.configDigest, layerDigest]) {
      const response = await get(`/v2/${root.toString()}/blobs/${digest}`)
      expect(response.status).toBe(200)
      expect(digestOf(new Uint8Array(await response.arrayBuffer()))).toBe(digest)
    }
    const unknown = await get(`/v2/${root.toString()}/manifests/v2`)
    expect(await errorOf(unknown)).toMatchObject({ status: 404, code: 'MANIFEST_UNKNOWN' })
  })
})
