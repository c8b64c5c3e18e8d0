import type { Pod } from '../../proto/messages/ipdr/deploy_pb.js'
import type { Problem } from './deployment-file-error.ts'

/** What a file says of a pod. */
export type DescribedPod = {
  /** To be sent; containers of `localImages` have no image yet. */
  readonly pod: Pod
  /** Multiaddr of the agent to ask, if the file names one. */
  readonly provider?: string | undefined
  /** Images to publish first, in the order of the containers. */
  readonly localImages: readonly LocalImage[]
  /** Secrets whose contents were read from files. */
  readonly localSecrets: readonly LocalSecret[]
  /** What is allowed, and perhaps not meant. */
  readonly remarks: readonly Problem[]
}

export type LocalImage = {
  /** The container's name. */
  readonly container: string
  /** An archive or OCI layout, relative to where the deployment file's own path is. */
  readonly path: string
}

export type LocalSecret = {
  /** The volume's name. */
  readonly volume: string
  readonly path: string
}

/** How a deployment file reaches what lies beside it. Neither is there in a page that only shows a pod. */
export type Surroundings = {
  /** Reads a file that the deployment file names; paths are joined to the folder of that file. */
  readonly readFile: (path: string) => Promise<Uint8Array>
  /** Variables for secrets and passwords. */
  readonly environment?: Readonly<Record<string, string | undefined>> | undefined
}
