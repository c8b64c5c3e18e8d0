import { spawn } from 'node:child_process'
import type { Writable } from 'node:stream'
import type { Descriptor } from '../../snapshotter/oci/descriptor.ts'
import { SuitePrograms } from './suite-programs.ts'

/**
 * Decrypts a layer by imgcrypt's ctd-decoder, as containerd runs it for a pull: ciphertext on standard input, a payload on descriptor
 * 3. Resolves to its exit code and what it wrote.
 */
export async function ctdDecode(
  ciphertext: Uint8Array,
  layer: Descriptor,
  { keysDir, env = {} }: { keysDir?: string; env?: Readonly<Record<string, string>> },
): Promise<{ exitCode: number | null; plaintext: Buffer; stderr: string }> {
  const [file, ...args] = SuitePrograms.unpack('trixie', 'imgcrypt', 'imgcrypt').command(
    'usr/bin/ctd-decoder',
  )
  const flags = keysDir === undefined ? [] : ['--decryption-keys-path', keysDir]
  const child = spawn(file, [...args, ...flags], {
    stdio: ['pipe', 'pipe', 'pipe', 'pipe'],
    env: { ...env, HOME: '/nonexistent' },
  })
  const plaintext: Buffer[] = []
  let stderr = ''
  child.stdout.on('data', (piece: Buffer) => plaintext.push(piece))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const { promise, resolve, reject } = Promise.withResolvers<number | null>()
  child.on('error', reject)
  child.on('close', resolve)
  const payload = child.stdio[3] as Writable
  for (const [pipe, bytes] of [
    [payload, payloadOf(layer)],
    [child.stdin, ciphertext],
  ] as const) {
    // One that refuses at once does not read to the end, and is judged by its exit code.
    pipe.on('error', () => undefined)
    pipe.end(bytes)
  }
  const exitCode = await promise
  return { exitCode, plaintext: Buffer.concat(plaintext), stderr }
}

/** imgcrypt's payload: a google.protobuf.Any with the name of its type and, as it is no message, JSON. */
function payloadOf(layer: Descriptor): Buffer {
  const json = { DecryptConfig: { Parameters: null }, Descriptor: layer }
  const fields = ['io.containerd.ocicrypt.v1.Payload', JSON.stringify(json)]
  return Buffer.concat(
    fields.flatMap((text, at) => {
      const bytes = Buffer.from(text)
      return [Buffer.from([((at + 1) << 3) | 2]), varint(bytes.length), bytes]
    }),
  )
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest > 127; rest >>>= 7) bytes.push((rest & 127) | 128)
  return Buffer.from([...bytes, rest])
}
