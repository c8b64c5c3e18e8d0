import { writeFile } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'
import { DEPLOYMENT_FILE } from '../publisher-options.ts'

/** `ipdr init` */
export const init: Command = defineCommand({
  name: 'init',
  usage: '[file]',
  summary: 'Write a deployment file to start from',
  description: [
    'Writes a file with one container, and comments that show what else there is. It is never written over.',
  ],
  args: { file: { type: 'string', default: DEPLOYMENT_FILE, describe: 'The file to write' } },
  options: {
    name: {
      type: 'string',
      requiresArg: true,
      describe: 'Name of the pod; by default that of the directory',
      valueName: 'NAME',
    },
    image: {
      alias: 'i',
      type: 'string',
      requiresArg: true,
      demandOption: true,
      describe: 'ipdr.internal/<CID> as ipdr push prints it, or an image of a registry',
      valueName: 'IMAGE',
    },
    http: {
      type: 'string',
      array: true,
      requiresArg: true,
      default: [] as string[],
      describe: 'A port of the container, and the host name that leads to it; may be repeated',
      valueName: 'PORT:HOST',
    },
    volume: {
      type: 'string',
      array: true,
      requiresArg: true,
      default: [] as string[],
      describe: 'A disk, where the container finds it, and its size; may be repeated',
      valueName: 'NAME:PATH[:SIZE]',
    },
  },
  examples: [
    ['ipdr init --image ipdr.internal/<cid> --http 80:shop.example.com', 'a web server'],
    ['ipdr init db.yaml -i postgres:16 --volume data:/var/lib/postgresql:10GiB', 'a database'],
  ],
  seeAlso: ['ipdr deploy', 'ipdr push'],
  async run({ file, name, image, http, volume }, { output }) {
    const { initialFile } = await import('../../client/deployment-file-init.ts')
    const text = initialFile({
      name: name ?? nameOf(basename(resolve('.'))),
      image,
      ports: http.map(parsePort),
      volumes: volume.map(parseVolume),
    })
    try {
      await writeFile(file, text, { flag: 'wx' })
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error
      const message = `${file} is there already: name another file, or remove it`
      throw new CommandFailure(EXIT_CODES.failure, message, undefined, error)
    }
    output.answer({ file }, () =>
      output.quiet ? file : `Wrote ${file}. Deploy it with: ipdr deploy ${file}`,
    )
  },
})

/** A directory's name, as far as a pod may be called so. */
function nameOf(directory: string): string {
  const name = directory
    .toLowerCase()
    .replaceAll(/[^a-z0-9-]+/g, '-')
    .replaceAll(/^-+|-+$/g, '')
    .slice(0, 40)
  return name === '' ? 'pod' : name
}

function parsePort(text: string): { container: number; host: string } {
  const match = /^(\d{1,5}):(.+)$/.exec(text)
  if (match === null) {
    throw new CommandFailure(EXIT_CODES.usage, `--http ${text} must be like 80:shop.example.com`)
  }
  return { container: Number(match[1]), host: match[2] ?? '' }
}

function parseVolume(text: string): { name: string; path: string; disk?: string } {
  const match = /^([^:]+):(\/[^:]*)(?::([^:]+))?$/.exec(text)
  if (match === null) {
    throw new CommandFailure(
      EXIT_CODES.usage,
      `--volume ${text} must be like data:/var/lib/data:10GiB`,
    )
  }
  const [, name = '', path = '', disk] = match
  return { name, path, ...(disk !== undefined && { disk }) }
}
