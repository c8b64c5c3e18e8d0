import { freePort } from './agent.ts'
import { Daemon } from './daemon.ts'
import { type GoProgram, goProgram } from './go-programs.ts'
import { etcdCommand, KubeApiServer, type KubeApiServerOptions } from './kube-apiserver.ts'
import { KubeControllers } from './kube-controllers.ts'
import type { Scratch } from './scratch.ts'

const PROGRAMS = [
  'kube-apiserver',
  'kube-controller-manager',
  'kube-scheduler',
  'kubelet',
] as const satisfies readonly GoProgram[]

/** A KubeApiServer with controllers and a scheduler: what is asked for comes to be, on the nodes that kubelets bring. */
export class KubeCluster implements AsyncDisposable {
  readonly api: KubeApiServer
  readonly #opened: AsyncDisposableStack

  private constructor(api: KubeApiServer, opened: AsyncDisposableStack) {
    this.api = api
    this.#opened = opened
  }

  /** Builds and unpacks whatever `start` and a kubelet need, where that needs a network that the test is about to leave. */
  static async fetch(): Promise<void> {
    etcdCommand()
    for (const name of PROGRAMS) await goProgram(name)
  }

  /** Starts all of it, and waits until it is ready. Builds the programs if need be. */
  static async start(scratch: Scratch, options?: KubeApiServerOptions): Promise<KubeCluster> {
    await using opened = new AsyncDisposableStack()
    const api = opened.use(await KubeApiServer.start(scratch, options))
    const [port, { certFile, keyFile }] = [await freePort(), api.serverCertificate]
    const scheduler = opened.use(
      await Daemon.start(scratch, 'kube-scheduler', [
        await goProgram('kube-scheduler'),
        `--kubeconfig=${api.adminKubeconfig}`,
        '--leader-elect=false',
        '--bind-address=127.0.0.1',
        `--secure-port=${port}`,
        `--tls-cert-file=${certFile}`,
        `--tls-private-key-file=${keyFile}`,
      ]),
    )
    await scheduler.whenReady(() => api.answers(`https://127.0.0.1:${port}/healthz`))
    opened.use(await KubeControllers.start(scratch, api))
    return new KubeCluster(api, opened.move())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync()
  }
}
