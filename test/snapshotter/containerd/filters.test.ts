import { describe, expect, test } from 'vitest'
import { parseFilters } from '../../../snapshotter/containerd/filters.ts'
import { RequestError } from '../../../snapshotter/errors.ts'

/** A snapshot's fields, all of them: `labels` is looked up by the rest of the path. */
function fieldOf([field, ...rest]: readonly string[]): string | undefined {
  const labels: Record<string, string> = {
    foo: 'bar',
    'containerd.io/snapshot.ref': 'sha256:ab',
    'a.b': 'dotted',
    'with "quotes"': 'say "hi"',
    tab: 'a\tb',
    umlaut: 'ü',
  }
  if (field === 'labels') return labels[rest.join('.')]
  const fields: Record<string, string> = { name: 'sha256:ab', parent: '', kind: 'active' }
  return fields[field ?? '']
}

describe('filters', () => {
  test('without a filter, or with an empty one, everything passes', () => {
    expect(parseFilters([])(fieldOf)).toBe(true)
    expect(parseFilters([''])(fieldOf)).toBe(true)
    expect(parseFilters(['name==x', ''])(fieldOf)).toBe(true)
  })

  test.each<[string, boolean]>([
    // Presence.
    ['name', true],
    ['parent', true],
    ['nothing', false],
    ['labels', false],
    ['labels.foo', true],
    ['labels.bar', false],
    // Equality.
    ['kind==active', true],
    ['kind==Active', false],
    ['name==sha256:ab', true],
    ['name=="sha256:ab"', true],
    ['parent==""', true],
    ['parent!=""', false],
    ['labels.bar==""', false],
    ['labels.bar!=x', true],
    ['labels.bar!=""', false],
    ['nothing!=x', true],
    // Paths.
    ['labels."containerd.io/snapshot.ref"==sha256:ab', true],
    ['labels.a.b==dotted', true],
    ['labels."a".b==dotted', true],
    ['labels."a.b"==dotted', true],
    [String.raw`labels."with \"quotes\""=="say \"hi\""`, true],
    // Go's escapes.
    [String.raw`labels.tab=="a\tb"`, true],
    [String.raw`labels.tab=="a\x09b"`, true],
    [String.raw`labels.tab=="a\011b"`, true],
    [String.raw`labels.umlaut=="\u00fc"`, true],
    [String.raw`labels.umlaut=="\U000000fc"`, true],
    [String.raw`labels.umlaut=="\xc3\xbc"`, true],
    // All of several.
    ['kind==active,labels.foo==bar', true],
    ['kind==active,labels.foo==baz', false],
    ['kind==active , labels.foo == bar ', true],
    // What containerd sends after a claim.
    ['labels."containerd.io/snapshot.ref"==sha256:ab,parent==""', true],
    // Regular expressions, unanchored.
    ['name~=a256', true],
    ['name~=^sha256:', true],
    ['name~=^256', false],
    ['name~=|^sha256:[a-f0-9]+$|', true],
    ['name~=/256:(ab|cd)$/', true],
    [String.raw`labels.foo~="^b.r$"`, true],
    ['labels.none~=^$', true],
    ['name~=(?i)SHA', true],
  ])('%s is %s', (filter, passes) => {
    expect(parseFilters([filter])(fieldOf)).toBe(passes)
  })

  test('of several filters one is enough', () => {
    expect(parseFilters(['name==x', 'kind==active'])(fieldOf)).toBe(true)
    expect(parseFilters(['name==x', 'kind==view'])(fieldOf)).toBe(false)
  })

  test.each([
    ['name='],
    ['name=x'],
    ['name=='],
    ['==x'],
    ['name==x,'],
    [','],
    ['name==x y'],
    ['name=="x'],
    ['name=="x"y'],
    ['name==/x/'],
    ['labels.'],
    ['labels..x'],
    ['labels.containerd.io/snapshot.ref==sha256:ab'],
    [String.raw`name=="\q"`],
    [String.raw`name=="\x1"`],
    [String.raw`name=="\777"`],
    [String.raw`name=="\U00110000"`],
    [String.raw`name=="\xff"`],
    // RE2 has neither back-references nor look-around.
    [String.raw`name~="(a)\\1"`],
    ['name~="(?=a)"'],
    ['name~="(a"'],
    [`name~="${'(a|'.repeat(400)}"`],
    ['name~="((a{1000}){1000}){1000}"'],
    [`name=="${'a'.repeat(70_000)}"`],
  ])('%s is refused', (filter) => {
    expect(() => parseFilters([filter])).toThrow(RequestError)
    expect(() => parseFilters([filter])).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    )
  })

  test('an error names the filter, what was expected and where', () => {
    expect(() => parseFilters(['name=="x'])).toThrow(
      String.raw`filter "name==\"x": expected a closing " at character 6`,
    )
  })

  test('more than 100 filters are refused', () => {
    expect(() => parseFilters(Array.from({ length: 101 }, () => 'name'))).toThrow(/at most 100/)
  })

  // A backtracking engine takes minutes for this; a linear one a few ms.
  test('a pattern with nested repetition takes linear time', () => {
    const passes = parseFilters(['name~="^((a+)+)+$"'])
    const started = performance.now()
    expect(passes(() => `${'a'.repeat(4_000)}b`)).toBe(false)
    expect(performance.now() - started).toBeLessThan(2_000)
  })
})
