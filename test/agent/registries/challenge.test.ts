import { describe, expect, test } from 'vitest'
import { parseChallenges } from '../../../agent/registries/challenge.ts'
import { RegistryError } from '../../../snapshotter/errors.ts'

const read = (header: string | string[]): unknown =>
  parseChallenges(header, 'registry r').map(({ scheme, parameters }) => [
    scheme,
    Object.fromEntries(parameters),
  ])

describe('what a registry asks for', () => {
  test.each([
    [
      'Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push"',
      [
        [
          'bearer',
          {
            realm: 'https://auth.example/token',
            service: 'reg',
            scope: 'repository:a/b:pull,push',
          },
        ],
      ],
    ],
    ['Basic realm="Registry Realm"', [['basic', { realm: 'Registry Realm' }]]],
    ['basic', [['basic', {}]]],
    [
      'Bearer realm = "x" , service=y, Basic realm="z"',
      [
        ['bearer', { realm: 'x', service: 'y' }],
        ['basic', { realm: 'z' }],
      ],
    ],
    [
      'Negotiate YWJj==, Basic realm="z"',
      [
        ['negotiate', {}],
        ['basic', { realm: 'z' }],
      ],
    ],
    ['Bearer realm="a \\"b\\" \\\\c"', [['bearer', { realm: 'a "b" \\c' }]]],
    ['', []],
  ])('%s is understood', (header, challenges) => {
    expect(read(header)).toEqual(challenges)
  })

  test('may come in several headers', () => {
    expect(read(['Basic realm="a"', 'Bearer realm="b"'])).toEqual([
      ['basic', { realm: 'a' }],
      ['bearer', { realm: 'b' }],
    ])
  })

  test.each([
    ['quotes that are not closed', 'Bearer realm="open'],
    ['parameters without a comma between', 'Bearer realm="a" service="b"'],
    ['a parameter twice', 'Bearer realm="a",realm="b"'],
    ['no scheme', '"Bearer"'],
    ['more than 8 KiB', `Bearer realm="${'a'.repeat(9_000)}"`],
  ])('is refused with %s', (_, header) => {
    const problem = /registry r asks for credentials in a way that cannot be read/
    expect(() => read(header)).toThrow(problem)
    expect(() => read(header)).toThrow(RegistryError)
  })
})
