import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { runCommand } from './run-command.ts'

/** The files of one node, as its configuration names them. */
export type NodeCertificate = {
  readonly certFile: string
  readonly keyFile: string
  readonly caFile: string
}

/** Makes an authority in `dir`, and a certificate of it for each of `names`; for the addresses too, and of `organizations`, if given. */
export async function makeCertificates<Name extends string>(
  dir: string,
  names: readonly Name[],
  {
    ips = [],
    organizations = {},
  }: { ips?: readonly string[]; organizations?: { [name in Name]?: string } } = {},
): Promise<Record<Name, NodeCertificate>> {
  mkdirSync(dir, { recursive: true })
  const [caFile, caKey] = [join(dir, 'ca.pem'), join(dir, 'ca.key')]
  const newKey = ['req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  const authority = ['-x509', '-days', '2', '-subj', '/CN=cluster']
  await runCommand('openssl', [...newKey, ...authority, '-keyout', caKey, '-out', caFile])
  const made = await Promise.all(
    names.map(async (name) => {
      const [certFile, keyFile] = [join(dir, `${name}.pem`), join(dir, `${name}.key`)]
      const organization = organizations[name]
      const subject = `${organization === undefined ? '' : `/O=${organization}`}/CN=${name}`
      const signed = ['-x509', '-days', '2', '-subj', subject, '-CA', caFile, '-CAkey', caKey]
      const alternatives = ips.map((ip) => `IP:${ip}`).join()
      if (ips.length > 0) signed.push('-addext', `subjectAltName=${alternatives}`)
      await runCommand('openssl', [...newKey, ...signed, '-keyout', keyFile, '-out', certFile])
      return [name, { certFile, keyFile, caFile }] as const
    }),
  )
  return Object.fromEntries(made) as Record<Name, NodeCertificate>
}

/** The same as bytes. */
export function readCertificate({ certFile, keyFile, caFile }: NodeCertificate): {
  cert: Buffer
  key: Buffer
  ca: Buffer
} {
  return { cert: readFileSync(certFile), key: readFileSync(keyFile), ca: readFileSync(caFile) }
}
