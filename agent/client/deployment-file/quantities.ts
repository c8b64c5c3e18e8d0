import { DEPLOYMENT_LIMITS } from '../deployment-limits.ts'

/** A quantity, or what is wrong with it and what to write instead. */
export type Quantity = { readonly amount: number } | { readonly wrong: string }

const UNITS: ReadonlyMap<string, number> = new Map([
  ['b', 1],
  ...['k', 'm', 'g', 't', 'p'].flatMap((letter, index): [string, number][] => [
    [`${letter}ib`, 1024 ** (index + 1)],
    [`${letter}i`, 1024 ** (index + 1)],
    [`${letter}b`, 1000 ** (index + 1)],
  ]),
])

/** Thousandths of a core in 0.25, "1.5" or "250m". */
export function parseCpu(written: string | number): Quantity {
  const [, amount, milli] = /^(\d{1,9}(?:\.\d{1,9})?)(m?)$/.exec(String(written).trim()) ?? []
  if (amount === undefined) {
    return {
      wrong: `${shown(written)} is no number of cores; write cores, as 0.5, or thousandths of one, as 500m`,
    }
  }
  const millis = Number(amount) * (milli === 'm' ? 1 : 1000)
  const whole = Math.round(millis)
  if (Math.abs(millis - whole) > 1e-6 || whole < 1) {
    return {
      wrong: `${shown(written)} is no whole number of thousandths of a core; the least is 1m`,
    }
  }
  const max = DEPLOYMENT_LIMITS.cpuMillisMax
  if (whole <= max) return { amount: whole }
  return {
    wrong: `${shown(written)} is more than ${max / 1000} cores; write cores, as 2, or thousandths of one, as 2000m`,
  }
}

/** Bytes in "128MiB", "128Mi", "1.5 GB" or a bare number. */
export function parseBytes(
  written: string | number,
  { min, max }: { readonly min: number; readonly max: number },
): Quantity {
  const [, amount, unit = ''] =
    /^(\d{1,18}(?:\.\d{1,9})?) ?([a-zA-Z]{0,8})$/.exec(String(written).trim()) ?? []
  if (amount === undefined) {
    return {
      wrong: `${shown(written)} is no number of bytes; write a number with its unit, as 128MiB or 2GB`,
    }
  }
  const factor = unit === '' ? 1 : UNITS.get(unit.toLowerCase())
  if (factor === undefined) {
    if (!/^[kmgtp]$/i.test(unit)) {
      return {
        wrong: `${unit} is no unit of bytes; write KiB, MiB, GiB or TiB, or kB, MB, GB or TB`,
      }
    }
    const letter = unit.toUpperCase()
    return {
      wrong: `${shown(written)} can be read in two ways; write ${amount}${letter}iB for powers of 1024, or ${amount}${letter === 'K' ? 'k' : letter}B for powers of 1000`,
    }
  }
  const bytes = Math.round(Number(amount) * factor)
  if (bytes < min) {
    const unitless =
      unit === ''
        ? `${bytes} without a unit means bytes, and `
        : `${shown(written)} is too little: `
    return { wrong: `${unitless}the least is ${inMiB(min)}; write as in 128MiB` }
  }
  return bytes <= max
    ? { amount: bytes }
    : { wrong: `${shown(written)} is more than ${inTiB(max)}` }
}

function inMiB(bytes: number): string {
  return `${bytes / 1024 ** 2}MiB`
}

function inTiB(bytes: number): string {
  return `${bytes / 1024 ** 4}TiB`
}

function shown(written: string | number): string {
  const text = String(written)
  return `'${text.length > 60 ? `${text.slice(0, 60)}…` : text}'`
}
