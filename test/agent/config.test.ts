import { describe, expect, test } from 'vitest'
import { ConfigError, parseConfig, readConfig } from '../../agent/config.ts'

describe('the configuration', () => {
  test('is complete when nothing is given', () => {
    const config = parseConfig({})
    expect(config.root).toBe('/var/lib/ipdr-agent')
    expect(config.snapshotter.socketPath).toBe('/run/ipdr-agent/snapshotter.sock')
    expect(config.registry.listen).toEqual({ host: '127.0.0.1', port: 5080 })
    expect(config.fetch.foregroundDeadlineMs).toBe(30_000)
  })

  test('takes pinned images by CID, in any spelling, and by full name', () => {
    const cid = 'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'
    const pinned = [cid, `ipdr.internal/${cid}:latest`, 'docker.io/library/debian:12']
    expect(parseConfig({ store: { pinned } }).store.pinned).toEqual([cid, cid, pinned[2]])
  })

  test('keeps sockets beside the run directory that was given, unless they are named', () => {
    const config = parseConfig({ runDir: '/run/x', admin: { socketPath: '/tmp/a.sock' } })
    expect(config.snapshotter.socketPath).toBe('/run/x/snapshotter.sock')
    expect(config.admin.socketPath).toBe('/tmp/a.sock')
  })

  test('has no key provider unless it is asked for, and then beside the other sockets', () => {
    expect(parseConfig({ decryption: { keysDir: '/k' } }).keyProvider).toBeUndefined()
    expect(parseConfig({ decryption: { keysDir: '/k' }, keyProvider: {} }).keyProvider).toEqual({
      socketPath: '/run/ipdr-agent/keyprovider.sock',
      wrapKeys: {},
    })
  })

  test.each([
    [{ rooot: '/x' }, /rooot/],
    [{ store: { pinned: ['ipdr.internal/app:1'] } }, /store\.pinned\.0: .*holds no CID/],
    [{ store: { pinned: ['Not an image'] } }, /store\.pinned\.0: /],
    [{ fetch: { concurency: 3 } }, /fetch: .*concurency/],
    [{ root: 'var/lib' }, /root: must be an absolute path/],
    [{ runDir: `/${'x'.repeat(220)}` }, /runDir: must be at most 200 bytes/],
    [
      { admin: { socketPath: `/${'x'.repeat(120)}` } },
      /admin\.socketPath: must be at most 107 bytes/,
    ],
    [{ registry: { listen: 'localhost' } }, /registry\.listen: must be IP:port/],
    [{ registry: { listen: '127.0.0.1:99999' } }, /registry\.listen/],
    [{ ipfs: { gateways: ['ftp://x'] } }, /ipfs\.gateways\.0/],
    [{ ipfs: { peers: ['10.0.0.1:4001'] } }, /ipfs\.peers\.0/],
    [{ store: { bytesMax: -1 } }, /store\.bytesMax/],
    [{ fetch: { foregroundDeadlineMs: 1.5 } }, /fetch\.foregroundDeadlineMs/],
    [{ registries: { hosts: { 'a/b': {} } } }, /registries\.hosts\.a\/b: .*must be a host/],
    [{ registries: { hosts: { x: { mirror: 'ftp://x' } } } }, /registries\.hosts\.x\.mirror/],
    [{ registries: { hosts: { x: { password: 'y' } } } }, /registries\.hosts\.x: .*password/],
    [
      { registries: { credentials: { dockerConfigs: ['config.json'] } } },
      /registries\.credentials\.dockerConfigs\.0: must be an absolute path/,
    ],
    [{ registries: { indexes: ['docker.io/app'] } }, /registries\.indexes\.0: must be a CID/],
    [{ cluster: { listen: '127.0.0.1:1' } }, /cluster: needs tls/],
    [{ cluster: { peers: ['https://a'] } }, /cluster: needs tls/],
    [{ cluster: { kubernetes: {} } }, /cluster: needs tls/],
    [{ cluster: { kubernetes: { service: 'a/b' } } }, /cluster.kubernetes.service: must be a name/],
    [{ cluster: { kubernetes: { namespace: '..' } } }, /cluster.kubernetes.namespace: must be a/],
    [{ cluster: { kubernetes: { selector: 'a' } } }, /cluster.kubernetes: .*selector/],
    [{ cluster: { peers: ['http://10.0.0.1'] } }, /cluster\.peers\.0/],
    [{ cluster: { address: 'http://10.0.0.1' } }, /cluster\.address/],
    [{ cluster: { blocks: { cacheBytesMax: -1 } } }, /cluster\.blocks\.cacheBytesMax/],
    [{ cluster: { blocks: { uploadBytesPerSecond: 1 } } }, /cluster\.blocks\.uploadBytesPerSecond/],
    [{ cluster: { blocks: { answersMax: 0 } } }, /cluster\.blocks\.answersMax/],
    [{ cluster: { blocks: { size: 1 } } }, /cluster\.blocks: .*size/],
    [{ decryption: { keysDir: 'keys' } }, /decryption\.keysDir: must be an absolute path/],
    [{ trust: { policies: [{ name: '' }] } }, /trust\.policies\.0\.name/],
    [{ trust: { policies: [{ name: 'a' }, { name: 'a' }] } }, /two policies have the same name/],
    [{ trust: { policies: [{ name: 'a', roots: ['x'] }] } }, /roots\.0: must be a CID/],
    [{ trust: { policies: [{ name: 'a', images: ['*a*a*a*a*'] }] } }, /images\.0: may have four/],
    [
      { trust: { policies: [{ name: 'a', keys: ['/a'], signaturesMin: 2 }] } },
      /signaturesMin: there are not that many keys/,
    ],
    [{ trust: { policies: [{ name: 'a', key: ['/a'] }] } }, /trust\.policies\.0: .*key/],
    [{ decryption: { keys: '/keys' } }, /decryption: .*keys/],
    [{ keyProvider: {} }, /keyProvider: needs decryption\.keysDir/],
    [
      { decryption: { keysDir: '/k' }, keyProvider: { wrapKeys: { a: 'key.pem' } } },
      /keyProvider\.wrapKeys\.a: must be an absolute path/,
    ],
    [
      {
        decryption: { keysDir: '/k' },
        keyProvider: {
          wrapKeys: Object.fromEntries(Array.from({ length: 65 }, (_, at) => [at, '/k'])),
        },
      },
      /keyProvider\.wrapKeys: must be at most 64 keys/,
    ],
    [[], /top level/],
    [null, /top level/],
  ])('refuses %j and names the field', (value, problem) => {
    expect(() => parseConfig(value)).toThrow(problem)
    expect(() => parseConfig(value)).toThrow(ConfigError)
  })

  test('names every wrong field at once', () => {
    expect(() => parseConfig({ root: 'x', runDir: 'y' })).toThrow(/root: .*; runDir: /)
  })

  test('takes IPv6 addresses in brackets', () => {
    expect(parseConfig({ monitoring: { listen: '[::1]:0' } }).monitoring.listen).toEqual({
      host: '::1',
      port: 0,
    })
  })

  test('says which file cannot be read', () => {
    expect(() => readConfig('/nonexistent/config.json')).toThrow(
      'cannot read configuration file /nonexistent/config.json',
    )
  })
})
