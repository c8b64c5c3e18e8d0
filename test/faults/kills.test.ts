import { afterAll, beforeAll, expect, test } from 'vitest'
import { onceServed } from '../support/lazy-node.ts'
import { seeded } from '../support/seeded.ts'
import { agree, churn, judge, nothingIsLeft, ROUND_MS, tried } from './checks.ts'
import { faultsOn, strike } from './faults.ts'
import { World } from './world.ts'

/** How many faults. `make test-faults` asks for 500, `make test` for a few of each kind. */
const FAULTS = Number(process.env['FAULTS'] ?? 36)
const SEED = Number(process.env['FAULT_SEED'] ?? 1)
const random = seeded(SEED)

const opened = new AsyncDisposableStack()
let world: World

beforeAll(async () => {
  world = opened.use(await World.make(4))
}, 120_000)

afterAll(() => opened.disposeAsync(), 120_000)

test(
  `after each of ${FAULTS} faults at random points of pull, mount, read, commit, remove and evict (seed ${SEED}) containers read what they should, and all views agree`,
  async () => {
    const { node, images } = world
    const faults = faultsOn(world, random)
    const names = Object.keys(faults)
    // One container that lives through all of it.
    const [witnessed] = images
    if (witnessed === undefined) throw new Error('no image')
    await node.cri.pullImage(witnessed.reference)
    let witness = await world.startReader(witnessed)
    let [read, rounds] = [0, 0]
    for (let round = 0; round < FAULTS; round++) {
      const name = names[round < names.length ? round : random(names.length)] ?? ''
      const image = images[random(images.length)] ?? witnessed
      world.forgetPages()
      try {
        await Promise.all([churn(world, image, name), strike(faults, name, random)])
        const told = await judge(world, witness.id, witnessed, { read, name })
        if (told === undefined) {
          await witness[Symbol.asyncDispose]()
          // containerd's client may still be waiting before it connects again.
          witness = await tried(() => onceServed(() => world.startReader(witnessed)))
        }
        read = told ?? 0
        await agree(world, name)
      } catch (error) {
        const said = node.agent.lines.slice(-60).map((line) => JSON.stringify(line))
        console.error([`round ${round}: ${name}`, ...said].join('\n'))
        throw error
      }
      rounds++
    }
    await witness[Symbol.asyncDispose]()
    await nothingIsLeft(world)
    expect(rounds).toBe(FAULTS)
  },
  FAULTS * ROUND_MS,
)
