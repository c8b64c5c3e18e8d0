import { join } from 'node:path'
import { z } from 'zod'
import { parseJson } from '../../../snapshotter/oci/parse-json.ts'
import { parseConfig } from '../../config.ts'
import { placesOf } from '../../places.ts'
import { type Command, defineCommand } from '../command.ts'
import { EXIT_CODES } from '../exit-codes.ts'
import { CommandFailure } from '../failure.ts'

/** Bytes of a base specification. 1 MiB: containerd's own has 10 KB. */
const SPEC_BYTES_MAX = 1024 ** 2

/** How long the runtime lets the hook run, in seconds: 10 for the agent to come back, 30 for its answer, and room. */
const HOOK_TIMEOUT_S = 45

const specSchema = z.looseObject({
  ociVersion: z.string(),
  hooks: z.looseObject({ createRuntime: z.array(z.unknown()).nullish() }).nullish(),
})

/** `ipdr runtime-spec` */
export const runtimeSpec: Command = defineCommand({
  name: 'runtime-spec',
  usage: '',
  summary: 'Let containers start only if their pods may see their encrypted layers',
  description: [
    "Reads a base specification of containers from standard input, as 'ctr oci spec' prints it, and prints it with a hook added: the file for base_runtime_spec in containerd's configuration. Before a container of a pod starts, its runtime then asks the agent whether a key that pods of its namespace may use opens its encrypted layers. If not, the container does not start, and the pod's events say why.",
    'Needed where namespaces of one node do not trust each other: containerd gives a layer that is here to any image that claims it. While the agent does not run no container starts.',
  ],
  args: {},
  options: {
    'run-dir': {
      type: 'string',
      default: parseConfig({}).runDir,
      requiresArg: true,
      describe: "The agent's runDir",
      valueName: 'DIR',
    },
  },
  examples: [
    ['ctr oci spec | ipdr runtime-spec >/etc/containerd/ipdr-base-spec.json', 'for all pods'],
  ],
  seeAlso: ['ipdr-agent'],
  async run({ 'run-dir': runDir }, { output, signal }) {
    const spec = parseJson(
      await readInput(signal),
      specSchema,
      'the specification on standard input',
    )
    const { authorizeSocket } = placesOf({ root: '', runDir })
    const hook = {
      path: join(import.meta.dirname, '../bin/ipdr-authorize'),
      args: ['ipdr-authorize', authorizeSocket],
      // Runtimes give a hook no environment, and the shell in it finds nothing without.
      env: ['PATH=/usr/local/bin:/usr/bin:/bin'],
      timeout: HOOK_TIMEOUT_S,
    }
    const hooks = { ...spec.hooks, createRuntime: [...(spec.hooks?.createRuntime ?? []), hook] }
    const withHook = { ...spec, hooks }
    output.answer(withHook, () => JSON.stringify(withHook, undefined, 2))
  },
})

async function readInput(signal: AbortSignal): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  let bytes = 0
  for await (const part of process.stdin as AsyncIterable<Uint8Array>) {
    signal.throwIfAborted()
    bytes += part.length
    if (bytes > SPEC_BYTES_MAX) {
      throw new CommandFailure(
        EXIT_CODES.badData,
        `standard input has more than ${SPEC_BYTES_MAX} bytes`,
      )
    }
    parts.push(part)
  }
  return Buffer.concat(parts)
}
