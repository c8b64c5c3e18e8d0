import { freePort } from './agent.ts'
import { Daemon } from './daemon.ts'
import { goProgram } from './go-programs.ts'
import type { KubeApiServer } from './kube-apiserver.ts'
import type { Scratch } from './scratch.ts'

/** A real kube-controller-manager: Deployments get replicas, deleted namespaces are emptied, and what has lost its owner goes. */
export class KubeControllers implements AsyncDisposable {
  readonly #daemon: Daemon

  private constructor(daemon: Daemon) {
    this.#daemon = daemon
  }

  /** Starts it beside `api`, and waits until it is ready. Builds it if need be. */
  static async start(scratch: Scratch, api: KubeApiServer): Promise<KubeControllers> {
    const [port, { certFile, keyFile, caFile }] = [await freePort(), api.serverCertificate]
    const daemon = await Daemon.start(scratch, 'kube-controller-manager', [
      await goProgram('kube-controller-manager'),
      `--kubeconfig=${api.adminKubeconfig}`,
      '--leader-elect=false',
      '--bind-address=127.0.0.1',
      `--secure-port=${port}`,
      `--tls-cert-file=${certFile}`,
      `--tls-private-key-file=${keyFile}`,
      // KubeApiServer.namespace has made what that one would make.
      '--controllers=*,-serviceaccount-controller',
      `--root-ca-file=${caFile}`,
      `--service-account-private-key-file=${api.accountsKeyFile}`,
    ])
    await daemon.whenReady(() => api.answers(`https://127.0.0.1:${port}/healthz`))
    return new KubeControllers(daemon)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#daemon.kill()
  }
}
