import { describe, expect, test } from 'vitest'
import { parse } from 'yaml'
import { readDeploymentFile } from '../../../agent/client/deployment-file.ts'
import { DeploymentFileError } from '../../../agent/client/deployment-file-error.ts'
import { type InitialDeployment, initialFile } from '../../../agent/client/deployment-file-init.ts'
import { failureOf } from '../../support/failure-of.ts'

const surroundings = { readFile: () => Promise.reject(new Error('nothing is to be read')) }

describe('a new deployment file', () => {
  test.each<[string, InitialDeployment]>([
    ['an image alone', { name: 'app', image: 'nginx' }],
    [
      'a port',
      { name: 'app', image: './app.tar', ports: [{ container: 80, host: 'app.example.com' }] },
    ],
    [
      'ports and volumes',
      {
        name: 'true',
        image: 'ghcr.io/a/b@sha256:'.concat('0'.repeat(64)),
        ports: [
          { container: 80, host: 'a.example.com' },
          { container: 81, host: 'b.example.com' },
          { container: 7777, tcp: 'auto' },
          { name: 'wire', container: 7778, tcp: 30_080 },
          { container: 9 },
        ],
        volumes: [
          { name: 'data', path: '/var/lib/data' },
          { name: '1e3', path: '/with space', disk: '20GB' },
        ],
      },
    ],
  ])('of %s says what it was asked to, and reads back without a remark', async (_, initial) => {
    const { pod, remarks } = await readDeploymentFile(
      'ipdr.yaml',
      initialFile(initial),
      surroundings,
    )
    expect(remarks).toEqual([])
    expect(pod.name).toBe(initial.name)
    const [container] = pod.containers
    expect(container?.name).toBe(initial.name)
    expect(container?.image).toBe(initial.image.startsWith('.') ? '' : initial.image)
    expect(
      container?.ports.map(({ containerPort, exposure }) => [containerPort, exposure.value]),
    ).toEqual(
      (initial.ports ?? []).map(({ container: number, host, tcp }) => [
        number,
        host ?? (tcp === 'auto' ? 0 : tcp),
      ]),
    )
    expect(container?.mounts.map(({ volume, path }) => ({ volume, path }))).toEqual(
      (initial.volumes ?? []).map(({ name, path }) => ({ volume: name, path })),
    )
    expect(pod.volumes.map(({ name }) => name)).toEqual(
      (initial.volumes ?? []).map(({ name }) => name),
    )
  })

  test('reads back too when what its comments show is used', async () => {
    const text = initialFile({ name: 'app', image: 'nginx' })
      .replace(
        /^( *)# (?=(?:entrypoint|command|environment|ports|volumes|provider):| {2,})/gm,
        '$1',
      )
      .replace(/12D3KooW…/, '12D3KooWHFNTxc5RZSSe5ygPPYSE8V9hvUkNV5nWhMVqQkQJkNxT')
    const { containers, volumes } = parse(text) as {
      containers: Record<string, object>
      volumes: object
    }
    expect(Object.keys(containers['app'] ?? {})).toEqual(
      expect.arrayContaining(['entrypoint', 'command', 'environment', 'ports', 'volumes']),
    )
    expect(Object.keys(volumes)).toEqual(['data', 'tmp', 'key'])
    const { remarks } = await readDeploymentFile('ipdr.yaml', text, {
      readFile: () => Promise.resolve(new Uint8Array(1)),
    })
    expect(remarks.map(({ field }) => field)).toEqual(['volumes.tmp'])
  })

  test('that would be wrong is not made', async () => {
    const { name, message } = await failureOf(() => initialFile({ name: 'My app', image: 'Nginx' }))
    expect(name).toBe('DeploymentFileError')
    expect(message).toContain('is no name for an object of the cluster')
    expect(message).toContain('write nginx')
  })

  test('cannot be made to say something else by what it is to say', () => {
    const name = 'a'
    const hostile = 'nginx\nstateful: true'
    expect(() => initialFile({ name, image: hostile })).toThrow(DeploymentFileError)
    expect(() => initialFile({ name, image: 'nginx # x' })).toThrow(DeploymentFileError)
  })
})
