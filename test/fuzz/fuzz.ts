import { createHash } from 'node:crypto'
import { afterAll, expect, test } from 'vitest'
import { CodedError } from '../../snapshotter/errors.ts'
import { seeded } from '../support/seeded.ts'

/** What all cases follow from. Another one: FUZZ_SEED. */
const SEED = Number(process.env['FUZZ_SEED'] ?? 2026)

/** How many times the cases of an ordinary run: FUZZ_TIMES=100 runs for hours. */
const TIMES = Number(process.env['FUZZ_TIMES'] ?? 1)

/** The one case to run again, as a failure names it. */
const ONLY = process.env['FUZZ_CASE']

let total = 0

/** Something that reads what others wrote. */
export type Subject<Input> = {
  readonly cases: number
  /** Ones that it reads. */
  readonly inputs: () => readonly Input[] | Promise<readonly Input[]>
  readonly mutate: (random: (max: number) => number, input: Input, other: Input) => Input
  /** Reads one. May throw CodedError and nothing else; what it returns is looked at by itself, with expect. */
  readonly read: (input: Input) => unknown
}

/**
 * Changes inputs at random, each once, and has each read: the outcome must be a value or a CodedError. Every case follows from the seed,
 * the name and its number alone, so that it can be run by itself.
 */
export function fuzz<Input>(name: string, { cases, inputs, mutate, read }: Subject<Input>): void {
  test(
    `${name}, changed at random, is read or refused with a reason`,
    async () => {
      const valid = await inputs()
      for (const input of valid) await read(input)
      let refused = 0
      for (let number = 0; number < cases * TIMES; number++) {
        if (ONLY !== undefined && ONLY !== `${name} ${number}`) continue
        const random = seeded(seedOf(name, number))
        const [input, other] = [pick(valid, random), pick(valid, random)]
        try {
          await read(mutate(random, input, other))
        } catch (error) {
          if (!(error instanceof CodedError)) throw explained(error, name, number)
          refused += 1
        }
      }
      total += cases * TIMES
      // Changes that all were harmless, or all fatal, would have tested nothing.
      expect(refused).toBeGreaterThan(ONLY === undefined ? cases / 50 : -1)
    },
    120_000 * TIMES,
  )
}

/** To be called once in a file, so that the run says how much it tried. */
export function reportTotal(): void {
  afterAll(() => {
    process.stdout.write(`fuzz: ${total} cases, seed ${SEED}\n`)
  })
}

function explained(error: unknown, name: string, number: number): Error {
  const repeat = `FUZZ_SEED=${SEED} FUZZ_CASE='${name} ${number}'`
  return new Error(`case ${number}: ${String(error)}; again with ${repeat}`, { cause: error })
}

function seedOf(name: string, number: number): number {
  return createHash('sha256').update(`${SEED} ${name} ${number}`).digest().readUInt32LE(0)
}

function pick<T>(from: readonly T[], random: (max: number) => number): T {
  const picked = from[random(from.length)]
  if (picked === undefined) throw new Error('there is no input')
  return picked
}
