import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import {
  AuthorizationV1Api,
  CoreV1Api,
  KubeConfig,
  RbacAuthorizationV1Api,
  type V1PolicyRule,
} from '@kubernetes/client-node'
import { Agent, fetch } from 'undici'
import { freePort } from './agent.ts'
import { makeCertificates, type NodeCertificate, readCertificate } from './cluster-certificates.ts'
import { Daemon } from './daemon.ts'
import { goProgram } from './go-programs.ts'
import type { Scratch } from './scratch.ts'
import { SuitePrograms } from './suite-programs.ts'

/** The address that a cluster gives the API server, by which pods know it: the first one of the range below. */
export const SERVICE_ADDRESS = '10.96.0.1'
const SERVICE_PORT = 443

/** Where service accounts of tests live. */
const ACCOUNTS_NAMESPACE = 'ipdr-system'

/** A service account and what it may do. */
export type KubeAccount = {
  /** A kubeconfig with a token of it. */
  readonly kubeconfig: string
  /** Gives it these rights in place of those that it had, and waits until they count. */
  allow(rules: readonly V1PolicyRule[]): Promise<void>
  /** Makes every token of it void, and waits until the server takes none. */
  revokeTokens(): Promise<void>
  /** Writes a new token to `kubeconfig`. */
  renewToken(): Promise<void>
}

type Where = {
  /** Rights count in these namespaces only. */
  readonly namespaces?: readonly string[]
  /** Another way to the server, over plain HTTP. */
  readonly url?: string
}

export type KubeApiServerOptions = {
  /** Whether it listens at SERVICE_ADDRESS too, as if kube-proxy led there: in a network of our own, which has the address. */
  readonly isService?: boolean
}

type Ports = { readonly etcd: number; readonly etcdPeer: number; readonly api: number }

type Certificates = Readonly<Record<'server' | 'admin' | 'accounts', NodeCertificate>>

/**
 * A real kube-apiserver with an etcd of its own, on loopback, with RBAC and tokens of service accounts. There are no controllers, no
 * scheduler and no kubelet: pods stay as they were made, but in a KubeCluster.
 */
export class KubeApiServer implements AsyncDisposable {
  readonly url: string
  readonly certificate: NodeCertificate
  /** With what servers beside it answer on loopback. */
  readonly serverCertificate: NodeCertificate
  /** What signs the tokens of service accounts. */
  readonly accountsKeyFile: string
  /** A kubeconfig of one who may do everything. */
  readonly adminKubeconfig: string
  /** The same for the client. */
  readonly admin: KubeConfig = new KubeConfig()
  readonly #scratch: Scratch
  readonly #ports: Ports
  readonly #certificates: Certificates
  #etcd: Daemon | undefined
  #server: Daemon | undefined

  private constructor(scratch: Scratch, ports: Ports, certificates: Certificates) {
    this.#scratch = scratch
    this.#ports = ports
    this.#certificates = certificates
    this.certificate = certificates.admin
    this.serverCertificate = certificates.server
    this.accountsKeyFile = certificates.accounts.keyFile
    this.url = `https://127.0.0.1:${ports.api}`
    this.adminKubeconfig = join(scratch.dir, 'admin.kubeconfig')
    const { certFile, keyFile } = certificates.admin
    this.#writeKubeconfig(this.adminKubeconfig, {
      'client-certificate': certFile,
      'client-key': keyFile,
    })
    this.admin.loadFromFile(this.adminKubeconfig)
  }

  /** Starts both, with nothing in them, and waits until they are ready. Builds kube-apiserver if need be. */
  static async start(
    parent: Scratch,
    { isService = false }: KubeApiServerOptions = {},
  ): Promise<KubeApiServer> {
    const scratch = parent.inner('kube')
    const api = isService ? SERVICE_PORT : await freePort()
    const ports = { etcd: await freePort(), etcdPeer: await freePort(), api }
    const certificates = await makeCertificates(
      join(scratch.dir, 'certs'),
      ['server', 'admin', 'accounts'],
      { ips: ['127.0.0.1', SERVICE_ADDRESS], organizations: { admin: 'system:masters' } },
    )
    const server = new KubeApiServer(scratch, ports, certificates)
    await server.#startEtcd()
    await server.start()
    await server.namespace(ACCOUNTS_NAMESPACE)
    return server
  }

  /** Starts the API server again after `kill`, at the same address. */
  async start(): Promise<void> {
    const { server, accounts } = this.#certificates
    const daemon = await Daemon.start(this.#scratch, 'kube-apiserver', [
      await goProgram('kube-apiserver'),
      `--etcd-servers=https://127.0.0.1:${this.#ports.etcd}`,
      `--etcd-cafile=${server.caFile}`,
      `--etcd-certfile=${server.certFile}`,
      `--etcd-keyfile=${server.keyFile}`,
      // Only `compact` shall make it forget.
      '--etcd-compaction-interval=0',
      `--bind-address=${this.#ports.api === SERVICE_PORT ? '0.0.0.0' : '127.0.0.1'}`,
      `--secure-port=${this.#ports.api}`,
      // Nobody is told to come there (RFC 5737), but a loopback address is refused.
      '--advertise-address=192.0.2.1',
      '--endpoint-reconciler-type=none',
      `--cert-dir=${join(this.#scratch.dir, 'generated')}`,
      `--tls-cert-file=${server.certFile}`,
      `--tls-private-key-file=${server.keyFile}`,
      `--client-ca-file=${server.caFile}`,
      // By which kubelets know it, where it asks them for logs.
      `--kubelet-client-certificate=${this.#certificates.admin.certFile}`,
      `--kubelet-client-key=${this.#certificates.admin.keyFile}`,
      '--kubelet-preferred-address-types=InternalIP',
      '--authorization-mode=RBAC',
      // As every installer sets it.
      '--allow-privileged=true',
      '--service-cluster-ip-range=10.96.0.0/24',
      '--service-account-issuer=https://kubernetes.default.svc',
      `--service-account-signing-key-file=${accounts.keyFile}`,
      `--service-account-key-file=${accounts.certFile}`,
    ])
    this.#server = daemon
    await daemon.whenReady(() => this.answers(`${this.url}/readyz`))
  }

  /** Kills the API server; what it was told is in etcd. */
  async kill(): Promise<void> {
    await this.#server?.kill()
    this.#server = undefined
  }

  /** Forgets how things came to be as they are: who asks for changes since then gets 410. The server must be killed. */
  async compact(): Promise<void> {
    if (this.#server !== undefined) throw new Error('a running server remembers by itself')
    const { header } = (await this.#askEtcd('kv/range', { key: 'Lw==' })) as {
      header: { revision: string }
    }
    await this.#askEtcd('kv/compaction', { revision: header.revision, physical: true })
  }

  /** Makes a namespace, with the service account that pods without one run as. */
  async namespace(name: string): Promise<void> {
    const api = this.admin.makeApiClient(CoreV1Api)
    await api.createNamespace({ body: { metadata: { name } } })
    // The controller that would do so is not here.
    await api.createNamespacedServiceAccount({
      namespace: name,
      body: { metadata: { name: 'default' } },
    })
  }

  /** Makes a service account with these rights, by a ClusterRole. */
  async account(
    name: string,
    rules: readonly V1PolicyRule[],
    { namespaces, url }: Where = {},
  ): Promise<KubeAccount> {
    const namespace = ACCOUNTS_NAMESPACE
    const core = this.admin.makeApiClient(CoreV1Api)
    const rbac = this.admin.makeApiClient(RbacAuthorizationV1Api)
    const kubeconfig = join(this.#scratch.dir, `${name}.kubeconfig`)
    const metadata = { name }
    const make = (): Promise<unknown> =>
      core.createNamespacedServiceAccount({ namespace, body: { metadata } })
    const renewToken = async (): Promise<void> => {
      const { status } = await core.createNamespacedServiceAccountToken({
        namespace,
        name,
        body: { spec: { audiences: [] } },
      })
      this.#writeKubeconfig(kubeconfig, { token: status?.token }, url)
    }
    await make()
    await renewToken()
    await rbac.createClusterRole({ body: { metadata, rules: [] } })
    const binding = {
      metadata,
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name },
      subjects: [{ kind: 'ServiceAccount', namespace, name }],
    }
    if (namespaces === undefined) await rbac.createClusterRoleBinding({ body: binding })
    for (const namespace of namespaces ?? []) {
      await rbac.createNamespacedRoleBinding({ namespace, body: binding })
    }
    const user = `system:serviceaccount:${namespace}:${name}`
    const allow = async (rules: readonly V1PolicyRule[]): Promise<void> => {
      // Null, whatever the types say, where there are none.
      const before = (await rbac.readClusterRole({ name })).rules ?? []
      await rbac.replaceClusterRole({ name, body: { metadata, rules: [...rules] } })
      const expected = new Map([
        ...before.flatMap(rightsOf).map((right) => [right, false] as const),
        ...rules.flatMap(rightsOf).map((right) => [right, true] as const),
      ])
      for (const [right, isAllowed] of expected) {
        for (const namespace of namespaces ?? [undefined]) {
          await until(async () => (await this.#may(user, right, namespace)) === isAllowed)
        }
      }
    }
    await allow(rules)
    const revokeTokens = async (): Promise<void> => {
      await core.deleteNamespacedServiceAccount({ namespace, name })
      const own = new KubeConfig()
      own.loadFromFile(kubeconfig)
      const token = own.getCurrentUser()?.token ?? ''
      // It remembers for ten seconds whom it let in.
      await until(async () => (await this.#fetch(`${this.url}/api`, { token })).status === 401)
      await make()
    }
    return { kubeconfig, allow, revokeTokens, renewToken }
  }

  /** Whether there is a success at `url`, of any server that shows the cluster's certificate. */
  async answers(url: string): Promise<boolean> {
    try {
      return (await this.#fetch(url)).ok
    } catch {
      return false
    }
  }

  /** Kills both, and removes what they wrote. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill()
    await this.#etcd?.kill()
    await this.#scratch[Symbol.asyncDispose]()
  }

  async #startEtcd(): Promise<void> {
    const { certFile, keyFile, caFile } = this.#certificates.server
    const [own, peer] = [this.#etcdUrl, `http://127.0.0.1:${this.#ports.etcdPeer}`]
    const daemon = await Daemon.start(this.#scratch, 'etcd', [
      ...etcdCommand(),
      `--data-dir=${join(this.#scratch.dir, 'etcd')}`,
      `--listen-client-urls=${own}`,
      `--advertise-client-urls=${own}`,
      `--listen-peer-urls=${peer}`,
      `--initial-advertise-peer-urls=${peer}`,
      `--initial-cluster=default=${peer}`,
      '--client-cert-auth',
      `--trusted-ca-file=${caFile}`,
      `--cert-file=${certFile}`,
      `--key-file=${keyFile}`,
      '--log-level=warn',
      // It is never the machine that is killed.
      '--unsafe-no-fsync',
    ])
    this.#etcd = daemon
    await daemon.whenReady(() => this.answers(`${own}/health`))
  }

  get #etcdUrl(): string {
    return `https://127.0.0.1:${this.#ports.etcd}`
  }

  /** Through etcd's JSON gateway. */
  async #askEtcd(call: string, body: object): Promise<unknown> {
    const answer = await this.#fetch(`${this.#etcdUrl}/v3/${call}`, { body: JSON.stringify(body) })
    if (!answer.ok) throw new Error(`etcd: ${call}: ${await answer.text()}`)
    return answer.json()
  }

  /** As the admin, or as whoever has the token; with `body` it is a POST. */
  async #fetch(
    url: string,
    { body, token }: { body?: string; token?: string } = {},
  ): Promise<Response> {
    const { ca, ...admin } = readCertificate(this.#certificates.admin)
    const connect = token === undefined ? { ca, ...admin } : { ca }
    await using dispatcher = disposable(new Agent({ connect }))
    const answer = await fetch(url, {
      dispatcher,
      signal: AbortSignal.timeout(10_000),
      ...(body && { method: 'POST', body }),
      ...(token && { headers: { authorization: `Bearer ${token}` } }),
    })
    return new Response(await answer.text(), { status: answer.status })
  }

  async #may(user: string, right: string, namespace: string | undefined): Promise<boolean> {
    const [verb = '', group = '', resource = '', subresource] = right.split(/[ /]/)
    const { status } = await this.admin
      .makeApiClient(AuthorizationV1Api)
      .createSubjectAccessReview({
        body: {
          spec: {
            user,
            resourceAttributes: {
              verb,
              group,
              resource,
              ...(subresource && { subresource }),
              ...(namespace && { namespace }),
            },
          },
        },
      })
    return status?.allowed === true
  }

  #writeKubeconfig(path: string, user: object, url = this.url): void {
    const cluster = url.startsWith('https:')
      ? { server: url, 'certificate-authority': this.#certificates.server.caFile }
      : // The client takes plain HTTP only from those who say that they do not check certificates.
        { server: url, 'insecure-skip-tls-verify': true }
    const config = {
      apiVersion: 'v1',
      kind: 'Config',
      clusters: [{ name: 'c', cluster }],
      users: [{ name: 'u', user }],
      contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
      'current-context': 'x',
    }
    mkdirSync(this.#scratch.dir, { recursive: true })
    // YAML is a superset of JSON.
    writeFileSync(path, JSON.stringify(config))
  }
}

/** The words that start etcd. The first call unpacks it. */
export function etcdCommand(): string[] {
  return SuitePrograms.unpack('trixie', 'etcd', 'etcd-server').command('usr/bin/etcd')
}

/** `<verb> <group>/<resource>` of everything that the rule allows; the core group has no name. */
function rightsOf({ verbs, apiGroups = [], resources = [] }: V1PolicyRule): string[] {
  const named = apiGroups.flatMap((group) => resources.map((resource) => `${group}/${resource}`))
  return verbs.flatMap((verb) => named.map((name) => `${verb} ${name}`))
}

/** What was written is seen by the server a moment later: it watches etcd as we watch it. */
async function until(isSo: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 30_000
  while (!(await isSo())) {
    if (Date.now() > deadline) throw new Error('what was changed does not count after 30 s')
    await setTimeout(20)
  }
}

function disposable(agent: Agent): Agent & AsyncDisposable {
  return Object.assign(agent, { [Symbol.asyncDispose]: () => agent.destroy() })
}
